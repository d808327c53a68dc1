//! Starting the binary, and a receiver for what it sends.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

const BINARY: &str = env!("CARGO_BIN_EXE_postrider");
/// How long anything may take that a test waits for.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The binary with these arguments, untouched by the environment of whoever runs the tests.
pub(crate) fn postrider(arguments: &[&str]) -> Command {
    let mut command = Command::new(BINARY);
    command
        .args(arguments)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.stdin(Stdio::null());
    command
}

/// Runs the binary to its end.
pub(crate) fn run(arguments: &[&str]) -> Output {
    postrider(arguments).output().unwrap()
}

pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Asks again and again until there is an answer.
pub(crate) fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited too long for {what}");
        thread::sleep(Duration::from_millis(50));
    }
}

/// A running `postrider up`.
pub(crate) struct Up {
    child: Child,
    /// What it printed before it served.
    pub(crate) welcome: String,
}

impl Up {
    /// Starts it at free ports and waits until it serves. It may send to the loopback interface.
    pub(crate) fn start(data_dir: &Path) -> Self {
        let mut command = postrider(&["up", "--listen", "127.0.0.1:0"]);
        command
            .args(["--health-listen", "127.0.0.1:0", "--data"])
            .arg(data_dir);
        command.env("POSTRIDER_EGRESS__ALLOW_CIDRS", "127.0.0.0/8");
        let child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut up = Self {
            child,
            welcome: String::new(),
        };
        let mut lines = BufReader::new(up.child.stdout.take().unwrap()).lines();
        let mut log = up.child.stderr.take().unwrap();
        for line in lines.by_ref() {
            up.welcome.push_str(&line.unwrap());
            up.welcome.push('\n');
            if up.welcome.contains("event show") {
                // What comes after is read, so that it never blocks.
                thread::spawn(move || lines.for_each(drop));
                thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
                return up;
            }
        }
        let mut said = String::new();
        log.read_to_string(&mut said).unwrap();
        panic!("it ended early, having said {:?} and {said}", up.welcome);
    }

    /// The commands to paste.
    pub(crate) fn commands(&self) -> Vec<String> {
        let lines = self.welcome.lines().map(str::trim);
        lines
            .filter(|line| line.starts_with(BINARY))
            .map(str::to_owned)
            .collect()
    }

    /// Where the API is.
    pub(crate) fn url(&self) -> String {
        let (_, rest) = self.welcome.split_once("http://").unwrap();
        format!("http://{}", rest.split_whitespace().next().unwrap())
    }

    /// Asks it to end, as an init system does, and waits for that.
    pub(crate) fn terminate(mut self) -> ExitStatus {
        signal(self.child.id(), "TERM");
        let child = &mut self.child;
        wait_for("the end of the process", || child.try_wait().unwrap())
    }

    /// Ends it without warning.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

pub(crate) fn signal(process: u32, name: &str) {
    let status = Command::new("kill")
        .args([format!("-{name}"), process.to_string()])
        .status()
        .unwrap();
    assert!(status.success());
}

/// An endpoint's server: notes every request, and answers as it is told to.
pub(crate) struct Receiver {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<Request>>>,
    status: Arc<Mutex<u16>>,
}

/// A request as it came.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.head.lines().filter_map(|line| line.split_once(": "));
        headers
            .find(|(header, _)| header.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.trim())
    }
}

impl Receiver {
    pub(crate) fn start(status: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let status = Arc::new(Mutex::new(status));
        let (noted, answer) = (requests.clone(), status.clone());
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (noted, answer) = (noted.clone(), answer.clone());
                thread::spawn(move || drop(serve(&stream.unwrap(), &noted, &answer)));
            }
        });
        Self {
            address,
            requests,
            status,
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}/hooks", self.address)
    }

    pub(crate) fn answer(&self, status: u16) {
        *self.status.lock() = status;
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.requests.lock().clone()
    }
}

/// Serves one connection, request by request.
fn serve(
    stream: &TcpStream,
    requests: &Mutex<Vec<Request>>,
    status: &Mutex<u16>,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream);
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if reader.read_line(&mut head)? == 0 {
                return Ok(());
            }
        }
        let mut request = Request {
            head,
            body: String::new(),
        };
        let length: u64 = request
            .header("content-length")
            .map_or(0, |length| length.parse().unwrap());
        (&mut reader)
            .take(length)
            .read_to_string(&mut request.body)?;
        requests.lock().push(request);
        let status = *status.lock();
        write!(
            &*stream,
            "HTTP/1.1 {status} As Told\r\ncontent-length: 0\r\n\r\n"
        )?;
    }
}
