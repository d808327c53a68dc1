//! A real Apache Kafka broker for tests: one process that is broker and controller, on a directory
//! of its own.
//!
//! A small shell stands between the test and the broker. It waits for a line on its standard input,
//! whose other end the test holds: when the test ends, however it ends, the kernel closes the pipe,
//! and the shell kills the broker and removes the directory. So nothing is left behind by a panic
//! or by kill -9.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::ports;

/// How long a broker may take until it answers. It takes 3 s on an idle machine.
const START_TIMEOUT: Duration = Duration::from_secs(90);
/// Ports may be taken between choosing and binding them.
const START_TRIES: usize = 5;

/// Options of the JVM: enough for the tests, and starts soonest.
const QUICK: &str = "-Xmx384m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -XX:-UsePerfData";
/// Those that Kafka's own scripts set.
const AS_SHIPPED: &str = "-Xms1g -Xmx1g -server -XX:+UseG1GC -XX:MaxGCPauseMillis=20 \
    -XX:InitiatingHeapOccupancyPercent=35 -XX:+ExplicitGCInvokesConcurrent -XX:MaxInlineLevel=15";

/// Names the broker's process id, then waits. `keep` leaves the directory for a restart.
const WATCHDOG: &str = r#"
"$@" >>"$DIR/broker.log" 2>&1 </dev/null &
broker=$!
echo "$broker"
read -r word
kill -9 "$broker" 2>/dev/null
wait "$broker" 2>/dev/null
[ "$word" = keep ] || rm -rf "$DIR"
"#;

const PROPERTIES: &str = "\
process.roles=broker,controller
node.id=1
controller.listener.names=CONTROLLER
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
inter.broker.listener.name=PLAINTEXT
auto.create.topics.enable=false
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
group.consumer.min.session.timeout.ms=1000
group.consumer.session.timeout.ms=10000
group.consumer.min.heartbeat.interval.ms=100
group.consumer.heartbeat.interval.ms=500
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
num.network.threads=2
num.io.threads=3
background.threads=2
log.initial.task.delay.ms=500
log.retention.check.interval.ms=500
log.cleaner.backoff.ms=300
log.cleaner.dedupe.buffer.size=4194304
log.segment.delete.delay.ms=500
";

/// What makes three brokers a cluster that loses nothing when it loses one.
const REPLICATED: [(&str, &str); 6] = [
    ("default.replication.factor", "3"),
    ("min.insync.replicas", "2"),
    ("offsets.topic.replication.factor", "3"),
    ("transaction.state.log.replication.factor", "3"),
    ("replica.lag.time.max.ms", "3000"),
    // Kafka ships 30 s: so long its brokers, and all who write to them, wait for a controller that
    // is frozen.
    ("controller.socket.timeout.ms", "3000"),
];

const LOG4J: &str = "\
status=error
appender.stdout.type=Console
appender.stdout.name=stdout
appender.stdout.layout.type=PatternLayout
appender.stdout.layout.pattern=%d{HH:mm:ss.SSS} %p %c{1} %m%n
rootLogger.level=warn
rootLogger.appenderRef.stdout.ref=stdout
";

/// A running broker; dropping it kills the process and removes its directory.
#[derive(Debug)]
pub struct KafkaBroker {
    dir: PathBuf,
    port: u16,
    /// Addresses of all brokers of its cluster.
    bootstrap: String,
    /// Whether the listener for clients wants TLS.
    tls: bool,
    /// Options of its JVM.
    jvm: &'static str,
    process: Mutex<Option<Process>>,
}

/// The shell that watches the broker, and the broker.
#[derive(Debug)]
struct Process {
    watchdog: Child,
    lifeline: ChildStdin,
    broker_pid: u32,
}

impl KafkaBroker {
    /// Starts a broker on an empty directory and waits until it answers.
    ///
    /// # Panics
    /// If it does not start; the message says what is missing.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// Starts a broker with further server properties.
    ///
    /// # Panics
    /// If it does not start; the message says what is missing.
    pub fn start_with(properties: &[(&str, &str)]) -> Self {
        Self::start_on(QUICK, properties)
    }

    fn start_on(jvm: &'static str, properties: &[(&str, &str)]) -> Self {
        fetch();
        let mut last = String::new();
        for _ in 0..START_TRIES {
            match Self::try_start(jvm, properties) {
                Ok(broker) => return broker,
                Err(log) => last = log,
            }
        }
        panic!("the Kafka broker did not start:\n{last}");
    }

    /// The broker that the tests of one binary share; it ends with the process. Use names of your
    /// own for topics.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<KafkaBroker> = OnceLock::new();
        SHARED.get_or_init(Self::start)
    }

    /// The broker that the benchmarks share. It runs as Kafka's own scripts run it: its code takes
    /// long to get warm, and then needs less of the machine than that of the broker of the tests.
    pub fn as_shipped() -> &'static Self {
        static SHARED: OnceLock<KafkaBroker> = OnceLock::new();
        SHARED.get_or_init(|| Self::start_on(AS_SHIPPED, &[]))
    }

    /// Starts three brokers that are one cluster, with three replicas of everything, of which two
    /// must have what is acknowledged. Each is a controller too, so that two of them are needed for
    /// a decision.
    ///
    /// # Panics
    /// If they do not start; the message says what is missing.
    pub fn start_three() -> [Self; 3] {
        fetch();
        let mut last = String::new();
        for _ in 0..START_TRIES {
            match Self::try_start_three() {
                Ok(brokers) => return brokers,
                Err(log) => last = log,
            }
        }
        panic!("the Kafka brokers did not start:\n{last}");
    }

    /// The address for clients: `host:port`, the same after a restart; those of all brokers of its
    /// cluster.
    pub fn bootstrap(&self) -> String {
        self.bootstrap.clone()
    }

    /// Kills the broker with SIGKILL. What it has acknowledged is in its directory.
    pub fn kill(&self) {
        if let Some(process) = self.process().take() {
            process.end("keep\n");
        }
    }

    /// Kills the broker if it runs, starts it on the same directory and port, and waits until it
    /// answers.
    ///
    /// # Panics
    /// If it does not start.
    pub fn restart(&self) {
        self.kill();
        let process = self
            .process()
            .insert(Process::spawn(self.jvm, &self.dir))
            .broker_pid;
        if !answers_in_time(self.port, self.tls, || alive(process)) {
            panic!(
                "the Kafka broker did not start again:\n{}",
                log_of(&self.dir)
            );
        }
    }

    /// Cuts the last half of every partition of a topic off, as a power cut may that comes before
    /// the disk has it. The broker must be killed.
    ///
    /// # Panics
    /// If its files cannot be changed.
    pub fn lose_tails(&self, topic: &str) {
        let data = fs::read_dir(self.dir.join("data")).expect("the broker has a directory");
        for partition in data.map(|entry| entry.expect("an entry").path()) {
            let name = partition.file_name().unwrap_or_default().to_string_lossy();
            let is_of_topic = name.rsplit_once('-').is_some_and(|(of, _)| of == topic);
            if !is_of_topic {
                continue;
            }
            let segment = partition.join("00000000000000000000.log");
            let file = fs::File::options().write(true).open(segment);
            let file = file.expect("the partition has its first segment");
            let bytes = file.metadata().expect("a size").len();
            file.set_len(bytes / 2).expect("the segment is cut");
        }
    }

    /// Stops the broker in its tracks (SIGSTOP): connections stay open and nothing answers.
    pub fn freeze(&self) {
        self.signal("-STOP");
    }

    /// Lets a frozen broker go on.
    pub fn thaw(&self) {
        self.signal("-CONT");
    }

    /// How many bytes the newest segment of a partition has, such as `registry-0`, with the topic's
    /// prefix.
    ///
    /// # Panics
    /// If there is no such partition.
    pub fn segment_bytes(&self, partition: &str) -> u64 {
        let segment = self.segment(partition);
        fs::metadata(segment).expect("the segment is there").len()
    }

    /// Takes away what a partition's newest segment has beyond so many bytes, as a power cut does.
    /// The broker must be killed before.
    ///
    /// # Panics
    /// If there is no such partition.
    pub fn cut_segment(&self, partition: &str, bytes: u64) {
        let segment = fs::OpenOptions::new()
            .write(true)
            .open(self.segment(partition));
        let cut = segment.and_then(|segment| segment.set_len(bytes));
        cut.expect("the segment is cut");
    }

    fn segment(&self, partition: &str) -> PathBuf {
        let folder = fs::read_dir(self.dir.join("data").join(partition));
        folder
            .expect("the partition is there")
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.extension().is_some_and(|extension| extension == "log"))
            .max()
            .expect("a partition has a segment")
    }

    /// Runs one of Kafka's own tools with the broker's address, such as
    /// `org.apache.kafka.tools.TopicCommand`, and gives what it printed.
    ///
    /// # Panics
    /// If the tool fails.
    pub fn tool(&self, class: &str, arguments: &[&str]) -> String {
        let output = java(QUICK, &self.dir)
            .arg(class)
            .args(["--bootstrap-server", &self.bootstrap()])
            .args(arguments)
            .output()
            .expect("java starts");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success(),
            "{class} {arguments:?} failed:\n{text}\n{}",
            String::from_utf8_lossy(&output.stderr)
        );
        text
    }

    /// What the broker logged, for messages of failed tests.
    pub fn log(&self) -> String {
        log_of(&self.dir)
    }

    fn try_start(jvm: &'static str, properties: &[(&str, &str)]) -> Result<Self, String> {
        let ports: [u16; 2] = ports::unused();
        let broker = Self::spawn(ports, address(ports[0]), jvm, properties);
        broker.until_it_answers()?;
        Ok(broker)
    }

    fn try_start_three() -> Result<[Self; 3], String> {
        let ports: [u16; 6] = ports::unused();
        let own = |index: usize| [ports[index], ports[index + 3]];
        let bootstrap = [0, 1, 2].map(|index| address(ports[index])).join(",");
        let voters = [0, 1, 2].map(|index| format!("{}@{}", index + 1, address(ports[index + 3])));
        let voters = voters.join(",");
        let brokers = ["1", "2", "3"].map(|id| {
            let mut properties = REPLICATED.to_vec();
            properties.extend([("node.id", id), ("controller.quorum.voters", &voters)]);
            let index = id.parse::<usize>().expect("it is a number") - 1;
            Self::spawn(own(index), bootstrap.clone(), QUICK, &properties)
        });
        // Only when two run does any of them answer.
        brokers.iter().try_for_each(Self::until_it_answers)?;
        Ok(brokers)
    }

    /// Starts the process on an empty directory.
    fn spawn(
        [port, controller_port]: [u16; 2],
        bootstrap: String,
        jvm: &'static str,
        properties: &[(&str, &str)],
    ) -> Self {
        let dir = fresh_dir();
        write_configuration(&dir, port, controller_port, properties);
        format_storage(&dir);
        // From here on the watchdog removes the directory.
        let process = Process::spawn(jvm, &dir);
        let tls = properties
            .iter()
            .any(|(name, _)| *name == "ssl.keystore.location");
        Self {
            dir,
            port,
            bootstrap,
            tls,
            jvm,
            process: Mutex::new(Some(process)),
        }
    }

    fn until_it_answers(&self) -> Result<(), String> {
        let pid = self.process().as_ref().expect("it was started").broker_pid;
        if answers_in_time(self.port, self.tls, || alive(pid)) {
            Ok(())
        } else {
            Err(self.log())
        }
    }

    fn signal(&self, signal: &str) {
        let pid = self.process().as_ref().expect("the broker runs").broker_pid;
        let status = Command::new("kill")
            .args([signal, &pid.to_string()])
            .status();
        assert!(
            status.expect("kill starts").success(),
            "kill {signal} {pid}"
        );
    }

    fn process(&self) -> parking_lot::MutexGuard<'_, Option<Process>> {
        self.process.lock()
    }
}

impl Drop for KafkaBroker {
    fn drop(&mut self) {
        match self.process().take() {
            Some(process) => process.end(""),
            None => drop(fs::remove_dir_all(&self.dir)),
        }
    }
}

impl Process {
    fn spawn(jvm: &str, dir: &Path) -> Self {
        let broker = java(jvm, dir);
        let mut watchdog = Command::new("sh")
            .args(["-c", WATCHDOG, "watchdog"])
            .arg(broker.get_program())
            .args(broker.get_args())
            .arg("kafka.Kafka")
            .arg(dir.join("server.properties"))
            .env("DIR", dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // Ctrl-C goes to the group of the test; the watchdog must outlive the test.
            .process_group(0)
            .spawn()
            .expect("sh starts");
        let lifeline = watchdog.stdin.take().expect("stdin is piped");
        let mut line = String::new();
        BufReader::new(watchdog.stdout.take().expect("stdout is piped"))
            .read_line(&mut line)
            .expect("the watchdog names the broker's process");
        let broker_pid = line.trim().parse().expect("a process id");
        Self {
            watchdog,
            lifeline,
            broker_pid,
        }
    }

    /// Ends the broker and waits for its end. Errors mean that it has ended already.
    fn end(mut self, word: &str) {
        drop(self.lifeline.write_all(word.as_bytes()));
        drop(self.lifeline);
        drop(self.watchdog.wait());
    }
}

fn java(options: &str, dir: &Path) -> Command {
    let mut command = Command::new("java");
    command
        .args(options.split_whitespace())
        .arg(format!(
            "-Dlog4j2.configurationFile={}",
            dir.join("log4j2.properties").display()
        ))
        .arg("-cp")
        .arg(format!("{}/*", libs().display()));
    command
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("tests is a folder of the workspace")
}

fn libs() -> PathBuf {
    root().join(".tools/kafka/libs")
}

/// Fetches Kafka when it is missing, once per process.
fn fetch() {
    static FETCHED: OnceLock<()> = OnceLock::new();
    FETCHED.get_or_init(|| {
        let script = root().join("tests/tools/fetch-kafka");
        let output = Command::new(&script)
            .output()
            .expect("tests/tools/fetch-kafka starts");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    });
}

fn address(port: u16) -> String {
    format!("127.0.0.1:{port}")
}

fn fresh_dir() -> PathBuf {
    let [a, b]: [u64; 2] = std::array::from_fn(|_| random());
    let dir = std::env::temp_dir().join(format!("postrider-kafka-{a:016x}{b:016x}"));
    fs::create_dir(&dir).expect("a directory for the broker");
    dir
}

fn random() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(std::process::id())
}

fn write_configuration(dir: &Path, port: u16, controller_port: u16, properties: &[(&str, &str)]) {
    let mut text = PROPERTIES.to_owned();
    let mut set = |name: &str, value: &str| {
        text.push_str(name);
        text.push('=');
        text.push_str(value);
        text.push('\n');
    };
    let data = format!("PLAINTEXT://127.0.0.1:{port}");
    set(
        "listeners",
        &format!("{data},CONTROLLER://127.0.0.1:{controller_port}"),
    );
    set("advertised.listeners", &data);
    set(
        "controller.quorum.voters",
        &format!("1@127.0.0.1:{controller_port}"),
    );
    set("log.dirs", &dir.join("data").display().to_string());
    for (name, value) in properties {
        set(name, value);
    }
    fs::write(dir.join("server.properties"), text).expect("server.properties is written");
    fs::write(dir.join("log4j2.properties"), LOG4J).expect("log4j2.properties is written");
}

fn format_storage(dir: &Path) {
    // Kafka takes any 16 bytes in base64 as the id of a cluster.
    let output = java(QUICK, dir)
        .args([
            "kafka.tools.StorageTool",
            "format",
            "-t",
            "UG9zdHJpZGVyVGVzdHMgIA",
            "-c",
        ])
        .arg(dir.join("server.properties"))
        .output()
        .expect("java starts");
    assert!(
        output.status.success(),
        "formatting the broker's storage failed:\n{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

fn log_of(dir: &Path) -> String {
    fs::read_to_string(dir.join("broker.log")).unwrap_or_default()
}

/// A process that has ended, but is not waited for yet, is a zombie and counts as dead.
fn alive(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        stat.rsplit(") ")
            .next()
            .is_some_and(|rest| !rest.starts_with('Z'))
    })
}

fn answers_in_time(port: u16, tls: bool, alive: impl Fn() -> bool) -> bool {
    let began = Instant::now();
    while began.elapsed() < START_TIMEOUT && alive() {
        if answers(port, tls).is_ok() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    false
}

/// Asks for the versions of the protocol, which a broker answers only when it serves. One that
/// wants TLS refuses the question then, by an alert or by hanging up.
fn answers(port: u16, tls: bool) -> std::io::Result<()> {
    // Length 10, ApiVersions (18) version 0, correlation id 1, no client id.
    const REQUEST: [u8; 14] = [0, 0, 0, 10, 0, 18, 0, 0, 0, 0, 0, 1, 0xff, 0xff];
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    stream.write_all(&REQUEST)?;
    let mut answer = [0; 8];
    if tls {
        stream.read(&mut answer).map(|_| ())
    } else {
        stream.read_exact(&mut answer)
    }
}
