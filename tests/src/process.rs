//! Programs under test: started, signalled, waited for, and their output kept for whoever has to
//! find out why.

use std::fs::{self, File, OpenOptions};
use std::io::{PipeReader, Read, Seek, SeekFrom, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime};

use crate::ports;

/// How much of a log is shown when a test fails.
const TAIL_BYTES: i64 = 16 * 1024;

/// A running program. It is killed when dropped; when that happens because a test failed, the end
/// of its output is shown.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    /// The end of what it writes to, if nobody reads that.
    _unread: Option<PipeReader>,
    ended: Option<ExitStatus>,
}

impl Process {
    /// Starts the program; what it says goes to `directory/name.log`, after what an earlier one
    /// said.
    pub fn start(name: &str, directory: &Path, command: &mut Command) -> Self {
        let log = directory.join(format!("{name}.log"));
        let output = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log)
            .expect("the log file opens");
        let errors = output.try_clone().expect("a file handle can be doubled");
        command.stdout(output).stderr(errors);
        Self::spawn(name, log, command, None)
    }

    /// Starts the program with a full pipe for what it says: nobody reads it for as long as it
    /// runs.
    pub fn start_unread(name: &str, directory: &Path, command: &mut Command) -> Self {
        let log = directory.join(format!("{name}.log"));
        let (reader, output) = std::io::pipe().expect("a pipe can be made");
        let [errors, mut filled] = [(); 2].map(|()| output.try_clone().expect("a handle doubles"));
        // Until the reader goes.
        std::thread::spawn(move || while filled.write_all(&[b'.'; 4096]).is_ok() {});
        command.stdout(output).stderr(errors);
        Self::spawn(name, log, command, Some(reader))
    }

    fn spawn(name: &str, log: PathBuf, command: &mut Command, unread: Option<PipeReader>) -> Self {
        let child = command
            .stdin(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("{name} does not start: {error}"));
        // So that the program is the only one who holds the other end of a pipe.
        command.stdout(Stdio::null()).stderr(Stdio::null());
        Self {
            name: name.to_owned(),
            child,
            log,
            _unread: unread,
            ended: None,
        }
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Everything it said.
    pub fn output(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.ended().is_none()
    }

    /// How it ended, if it did.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().expect("the child can be waited for");
        }
        self.ended
    }

    /// Ends it at once, with no chance to say goodbye.
    pub fn kill(&mut self) {
        if self.ended().is_none() {
            self.child.kill().expect("a running child can be killed");
            self.ended = Some(self.child.wait().expect("a killed child ends"));
        }
    }

    /// Asks it to end and waits until it has.
    ///
    /// # Panics
    /// When it does not end in time.
    pub fn terminate(&mut self, at_most: Duration) -> ExitStatus {
        self.ask_to_end();
        let started = Instant::now();
        loop {
            if let Some(status) = self.ended() {
                return status;
            }
            assert!(
                started.elapsed() < at_most,
                "{} did not end within {at_most:?} of SIGTERM",
                self.name
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Asks it to end (SIGTERM) and goes on.
    pub fn ask_to_end(&self) {
        self.signal("-TERM");
    }

    /// What it has in memory.
    pub fn memory_bytes(&self) -> u64 {
        self.kernel_bytes("VmRSS:")
    }

    /// The most that it had in memory.
    pub fn peak_memory_bytes(&self) -> u64 {
        self.kernel_bytes("VmHWM:")
    }

    /// How often its threads gave up a processor to wait for something.
    pub fn waits(&self) -> u64 {
        let threads = fs::read_dir(format!("/proc/{}/task", self.id()));
        let threads = threads.into_iter().flatten().flatten();
        threads
            .map(|thread| kernel_says(&thread.path(), "voluntary_ctxt_switches:"))
            .sum()
    }

    fn kernel_bytes(&self, name: &str) -> u64 {
        kernel_says(Path::new(&format!("/proc/{}", self.id())), name) * 1024
    }

    /// Stops it in its tracks (SIGSTOP).
    pub fn freeze(&self) {
        self.signal("-STOP");
    }

    /// Lets it go on after [`Process::freeze`].
    pub fn thaw(&self) {
        self.signal("-CONT");
    }

    fn signal(&self, signal: &str) {
        let sent = Command::new("kill")
            .args([signal, &self.id().to_string()])
            .status();
        assert!(
            sent.is_ok_and(|status| status.success()),
            "{} could not be signalled",
            self.name
        );
    }

    fn tail(&self) -> std::io::Result<String> {
        let mut file = File::open(&self.log)?;
        let length = i64::try_from(file.metadata()?.len()).unwrap_or(i64::MAX);
        file.seek(SeekFrom::End(-length.min(TAIL_BYTES)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

impl Drop for Process {
    #[expect(
        clippy::print_stderr,
        reason = "this is where a failed test's reader looks"
    )]
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("---- end of what {} said ({:?})", self.name, self.ended);
            eprintln!("{}", self.tail().unwrap_or_default());
        }
    }
}

/// The root of the repository.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the tests are in a folder of the repository")
}

/// The `postrider` binary of the build that this program belongs to; `POSTRIDER_TEST_BINARY` names
/// another.
///
/// # Panics
/// When it is missing or older than the sources and cannot be built.
pub fn postrider() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        if let Some(path) = std::env::var_os("POSTRIDER_TEST_BINARY") {
            return path.into();
        }
        let own = std::env::current_exe().expect("this program has a path");
        // A test is in deps/ of its profile's folder, a binary in the folder itself.
        let profile = own
            .ancestors()
            .skip(1)
            .find(|folder| folder.file_name().is_some_and(|name| name != "deps"))
            .expect("programs are built into a folder");
        let binary = profile.join("postrider");
        if is_stale(&binary) {
            build(profile);
        }
        binary
    })
}

/// Cargo builds no binary of another package for a test, so one that was left behind may be there.
fn is_stale(binary: &Path) -> bool {
    let Ok(built) = binary.metadata().and_then(|metadata| metadata.modified()) else {
        return true;
    };
    newest(&repository().join("crates")) > built
}

fn newest(folder: &Path) -> SystemTime {
    let entries = fs::read_dir(folder)
        .expect("the sources can be listed")
        .flatten();
    // Tests of other packages are no part of the binary.
    let times = entries
        .filter(|entry| entry.file_name() != "tests")
        .map(|entry| {
            if entry.path().is_dir() {
                newest(&entry.path())
            } else {
                let modified = entry.metadata().and_then(|metadata| metadata.modified());
                modified.unwrap_or(SystemTime::UNIX_EPOCH)
            }
        });
    times.max().unwrap_or(SystemTime::UNIX_EPOCH)
}

fn build(profile: &Path) {
    let target = profile
        .parent()
        .expect("a profile is a folder in the target folder");
    let mut cargo = Command::new(env!("CARGO"));
    cargo
        .args(["build", "--quiet", "--package", "postrider", "--target-dir"])
        .arg(target);
    if profile.ends_with("release") {
        cargo.arg("--release");
    }
    let status = cargo
        .current_dir(repository())
        .status()
        .expect("cargo starts");
    assert!(status.success(), "postrider could not be built");
}

/// An address that nobody listens at.
pub(crate) fn free_address() -> SocketAddr {
    let [port] = ports::unused();
    (Ipv4Addr::LOCALHOST, port).into()
}

/// What the kernel says of a process or a thread by this name, without its unit; 0 if it has ended.
fn kernel_says(of: &Path, name: &str) -> u64 {
    let status = fs::read_to_string(of.join("status")).unwrap_or_default();
    let value = status.lines().find_map(|line| line.strip_prefix(name));
    let number = value.and_then(|value| value.split_whitespace().next()?.parse().ok());
    number.unwrap_or_default()
}
