//! Postrider as it is run: the real binary's processes, on either log.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use axum::body::Body;
use axum::http::Request;
use tempfile::TempDir;

use crate::api::Api;
use crate::http::{Answer, HttpClient, NoAnswer};
use crate::kafka::KafkaBroker;
use crate::poll::eventually;
use crate::process::{Process, free_address, postrider};

const OPERATOR_KEY: &str = "prk_0123456789abcdef0123456789abcdef";
const ENCRYPTION_KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
/// The tenant of every test: each has a log of its own.
const TENANT: &str = "acme";
/// How long a process may take until it is ready: a group may wait for a member that was killed.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// How often other addresses are chosen when somebody else took one.
const ADDRESS_TRIES: usize = 5;
/// How long a process may take to end.
const ENDS_WITHIN: Duration = Duration::from_secs(40);

/// The log that a scenario runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogKind {
    /// One process on one directory.
    Embedded,
    /// Processes for each role on a real Kafka.
    Kafka,
}

/// What runs.
#[derive(Debug, Clone)]
pub struct Plan {
    log: LogKind,
    ingests: usize,
    delivers: Vec<(String, Vec<&'static str>)>,
    exports: bool,
    unread: bool,
    disk_bytes: Option<u64>,
    settings: BTreeMap<String, String>,
    broker: Option<&'static KafkaBroker>,
    binary: Option<PathBuf>,
}

impl Plan {
    /// On Kafka one ingest and one deliver with all stages, on the embedded log one process.
    pub fn new(log: LogKind) -> Self {
        let settings = [
            // Receivers are on this machine.
            ("POSTRIDER_EGRESS__ALLOW_CIDRS", "127.0.0.0/8"),
            // Small, so that many tests fit on one broker; the delays are those of short schedules.
            ("POSTRIDER_TOPICS__PARTITIONS", "4"),
            (
                "POSTRIDER_TOPICS__RETRY_DELAYS_MS",
                "[500, 1000, 2000, 5000, 20000]",
            ),
            ("POSTRIDER_RETRY__DEFAULT_SCHEDULE_MS", "[1000, 1000, 1000]"),
            ("POSTRIDER_TELEMETRY__FORMAT", "text"),
            // The partitions of a process that was killed are given to the next one after this
            // time; it starts no attempt on a lease that is older than the other.
            ("POSTRIDER_KAFKA__SESSION_TIMEOUT_MS", "10000"),
            ("POSTRIDER_KAFKA__HEARTBEAT_INTERVAL_MS", "1000"),
            ("POSTRIDER_DELIVERY__DELIVER__LEASE_MS", "8000"),
            ("POSTRIDER_INGEST__OPERATOR_KEY", OPERATOR_KEY),
            ("POSTRIDER_KEYS__ENCRYPTION", ENCRYPTION_KEY),
        ];
        let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned()));
        Self {
            log,
            ingests: 1,
            delivers: vec![("deliver".to_owned(), Vec::new())],
            exports: false,
            unread: false,
            disk_bytes: None,
            settings: settings.into(),
            broker: None,
            binary: None,
        }
    }

    /// Another build of the binary.
    #[must_use]
    pub fn binary(self, binary: &Path) -> Self {
        Self {
            binary: Some(binary.to_owned()),
            ..self
        }
    }

    /// Sets a variable of the environment of every process; an empty value unsets it.
    #[must_use]
    pub fn set(mut self, name: &str, value: &str) -> Self {
        if value.is_empty() {
            self.settings.remove(name);
        } else {
            self.settings.insert(name.to_owned(), value.to_owned());
        }
        self
    }

    /// On Kafka: so many ingest processes.
    #[must_use]
    pub fn ingests(self, ingests: usize) -> Self {
        Self { ingests, ..self }
    }

    /// On Kafka: so many processes with all stages, `deliver-0` and so on.
    #[must_use]
    pub fn delivers(self, delivers: usize) -> Self {
        let delivers = (0..delivers).map(|number| (format!("deliver-{number}"), Vec::new()));
        Self {
            delivers: delivers.collect(),
            ..self
        }
    }

    /// On Kafka: a further process with these stages.
    #[must_use]
    pub fn also_delivers(mut self, name: &str, stages: &[&'static str]) -> Self {
        self.delivers.push((name.to_owned(), stages.to_vec()));
        self
    }

    /// On Kafka: an `exporter`, too. It gathers twice a second.
    #[must_use]
    pub fn exports(self) -> Self {
        let plan = self.set("POSTRIDER_EXPORTER__INTERVAL_MS", "500");
        Self {
            exports: true,
            ..plan
        }
    }

    /// What the processes say goes to pipes that nobody reads.
    #[must_use]
    pub fn unread(self) -> Self {
        Self {
            unread: true,
            ..self
        }
    }

    /// On the embedded log: its directory is a disk of its own, of this size, which goes when the
    /// process ends.
    #[must_use]
    pub fn disk_bytes(self, bytes: u64) -> Self {
        Self {
            disk_bytes: Some(bytes),
            ..self
        }
    }

    /// On Kafka: groups of this protocol, `classic` or `consumer`.
    #[must_use]
    pub fn group_protocol(self, protocol: &str) -> Self {
        let plan = self.set("POSTRIDER_KAFKA__GROUP_PROTOCOL", protocol);
        if protocol == "classic" {
            return plan;
        }
        // The broker's configuration has them for such groups.
        plan.set("POSTRIDER_KAFKA__SESSION_TIMEOUT_MS", "")
            .set("POSTRIDER_KAFKA__HEARTBEAT_INTERVAL_MS", "")
    }

    /// On Kafka: a process of its own, by the stage's name, for each stage.
    #[must_use]
    pub fn stages_apart(self) -> Self {
        let stages = ["fan-out", "deliver", "scheduler"];
        Self {
            delivers: stages.map(|stage| (stage.to_owned(), vec![stage])).into(),
            ..self
        }
    }

    /// On Kafka: this broker instead of the shared one.
    #[must_use]
    pub fn broker(self, broker: &'static KafkaBroker) -> Self {
        Self {
            broker: Some(broker),
            ..self
        }
    }

    /// Makes it, on Kafka with its topics, without starting anything; [`Cluster::begin`] does.
    #[must_use]
    pub fn prepare(self) -> Cluster {
        Cluster::prepare(self)
    }

    /// Starts it and waits until all of it is ready.
    pub async fn start(self) -> Cluster {
        Cluster::start(self).await
    }
}

/// Running processes of one installation.
#[derive(Debug)]
pub struct Cluster {
    plan: Plan,
    // Before the directory, so that processes end before it goes.
    members: BTreeMap<String, Member>,
    prefix: String,
    broker: Option<&'static KafkaBroker>,
    directory: TempDir,
}

#[derive(Debug)]
struct Member {
    role: Vec<String>,
    api: Option<SocketAddr>,
    health: SocketAddr,
    process: Option<Process>,
}

impl Cluster {
    async fn start(plan: Plan) -> Self {
        let mut cluster = Self::prepare(plan);
        cluster.begin().await;
        cluster.api().ensure_tenant().await;
        cluster
    }

    fn prepare(plan: Plan) -> Self {
        static CLUSTERS: AtomicU32 = AtomicU32::new(0);
        let number = CLUSTERS.fetch_add(1, Ordering::Relaxed);
        let broker = match (plan.log, plan.broker) {
            (LogKind::Embedded, _) => None,
            (LogKind::Kafka, None) => Some(KafkaBroker::shared()),
            (LogKind::Kafka, own) => own,
        };
        let mut cluster = Self {
            prefix: format!("t{}-{number}.", std::process::id()),
            members: BTreeMap::new(),
            broker,
            directory: tempfile::tempdir().expect("a temporary directory can be made"),
            plan,
        };
        cluster.lay_out();
        if cluster.plan.log == LogKind::Kafka {
            cluster.run(&["topic", "create"]);
        }
        cluster
    }

    /// Starts every process and waits until all are ready.
    pub async fn begin(&mut self) {
        for name in self.members.keys().cloned().collect::<Vec<_>>() {
            self.spawn(&name);
        }
        for name in self.members.keys().cloned().collect::<Vec<_>>() {
            self.ready_at_free_addresses(&name).await;
        }
    }

    fn lay_out(&mut self) {
        if self.plan.log == LogKind::Embedded {
            self.add_member("up", &["up"], true);
            return;
        }
        for number in 0..self.plan.ingests {
            self.add_member(&format!("ingest-{number}"), &["ingest"], true);
        }
        for (name, stages) in self.plan.delivers.clone() {
            let stages = stages.join(",");
            let arguments: &[&str] = if stages.is_empty() {
                &["deliver"]
            } else {
                &["deliver", "--stages", &stages]
            };
            self.add_member(&name, arguments, false);
        }
        if self.plan.exports {
            self.add_member("exporter", &["exporter"], false);
        }
    }

    fn add_member(&mut self, name: &str, role: &[&str], serves_api: bool) {
        let role = role.iter().map(|argument| (*argument).to_owned()).collect();
        let api = serves_api.then(free_address);
        let member = Member {
            role,
            api,
            health: free_address(),
            process: None,
        };
        self.members.insert(name.to_owned(), member);
    }

    /// The binary with this installation's configuration.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.plan.binary.as_deref().unwrap_or_else(|| postrider()));
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("POSTRIDER_")) {
            command.env_remove(name);
        }
        command
            .args(arguments)
            .current_dir(self.directory.path())
            .envs(&self.plan.settings);
        match self.broker {
            Some(broker) => command
                .env("POSTRIDER_KAFKA__BOOTSTRAP_SERVERS", broker.bootstrap())
                .env("POSTRIDER_KAFKA__PREFIX", &self.prefix),
            None => command.env("POSTRIDER_EMBEDDED__DATA_DIR", self.data_directory()),
        };
        command
    }

    /// Runs a command of the binary to its end and gives what it printed.
    ///
    /// # Panics
    /// When it fails.
    pub fn run(&self, arguments: &[&str]) -> String {
        end(arguments, self.command(arguments))
    }

    /// The same, for a command that asks the API, as an operator.
    ///
    /// # Panics
    /// When it fails.
    pub fn operate(&self, arguments: &[&str]) -> String {
        let mut command = self.command(arguments);
        let api = self.members.values().find_map(|member| member.api);
        let api = api.expect("some process serves the API");
        command
            .env("POSTRIDER_URL", format!("http://{api}"))
            .env("POSTRIDER_API_KEY", OPERATOR_KEY);
        end(arguments, command)
    }

    fn spawn(&mut self, name: &str) {
        let member = self.member(name);
        let mut arguments = member.role.clone();
        arguments.extend(["--health-listen".to_owned(), member.health.to_string()]);
        if let Some(api) = member.api {
            arguments.extend(["--listen".to_owned(), api.to_string()]);
        }
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let mut command = self.command(&arguments);
        if let Some(bytes) = self.plan.disk_bytes {
            command = on_disk(bytes, &self.data_directory(), &command);
        }
        let start = if self.plan.unread {
            Process::start_unread
        } else {
            Process::start
        };
        let process = start(name, self.directory.path(), &mut command);
        self.member_mut(name).process = Some(process);
    }

    /// Waits until a new process is ready. Somebody else may have taken an address since it was
    /// chosen.
    async fn ready_at_free_addresses(&mut self, name: &str) {
        for _ in 0..ADDRESS_TRIES {
            match self.until_ready(name).await {
                Ok(()) => return,
                Err(ended) if ended.contains("Address already in use") => {
                    let member = self.member_mut(name);
                    member.health = free_address();
                    member.api = member.api.map(|_| free_address());
                    self.spawn(name);
                }
                Err(ended) => panic!("{name} {ended}"),
            }
        }
        panic!("{name} found no free address");
    }

    /// Waits until the process is ready that was started by this name.
    ///
    /// # Panics
    /// When it ends instead.
    pub async fn ready(&mut self, name: &str) {
        if let Err(ended) = self.until_ready(name).await {
            panic!("{name} {ended}");
        }
    }

    /// Waits until the process is ready; if it ends instead, tells how.
    async fn until_ready(&mut self, name: &str) -> Result<(), String> {
        let health = HttpClient::new(self.member(name).health);
        let process = self
            .member_mut(name)
            .process
            .as_mut()
            .expect("it was started");
        eventually(&format!("{name} is ready"), READY_WITHIN, || {
            let ended = process
                .ended()
                .map(|status| format!("ended with {status}: {}", process.output()));
            let health = health.clone();
            async move {
                if let Some(ended) = ended {
                    return Ok(Err(ended));
                }
                let request = Request::get("/readyz")
                    .body(Body::empty())
                    .expect("the request is valid");
                match health.send(request).await {
                    Ok(answer) if answer.status == 200 => Ok(Ok(())),
                    other => Err(other),
                }
            }
        })
        .await
    }

    fn member(&self, name: &str) -> &Member {
        self.members
            .get(name)
            .unwrap_or_else(|| panic!("there is no {name}"))
    }

    fn member_mut(&mut self, name: &str) -> &mut Member {
        self.members
            .get_mut(name)
            .unwrap_or_else(|| panic!("there is no {name}"))
    }

    /// The process that does this role's or stage's work: on the embedded log there is only one.
    fn resolve<'a>(&self, name: &'a str) -> &'a str {
        if self.plan.log == LogKind::Embedded {
            "up"
        } else {
            name
        }
    }

    /// The running process of this role or stage.
    pub fn process(&mut self, name: &str) -> &mut Process {
        let name = self.resolve(name);
        self.member_mut(name)
            .process
            .as_mut()
            .unwrap_or_else(|| panic!("{name} does not run"))
    }

    /// Every running process, by name.
    pub fn processes(&self) -> impl Iterator<Item = (&str, &Process)> {
        let running = self
            .members
            .iter()
            .filter_map(|(name, member)| Some((name, member.process.as_ref()?)));
        running.map(|(name, process)| (name.as_str(), process))
    }

    /// Kills the process of this role or stage, as `kill -9` does.
    pub fn kill(&mut self, name: &str) {
        self.process(name).kill();
    }

    /// Asks the process of this role or stage to end and waits for it.
    ///
    /// # Panics
    /// When it does not end in time, or not well.
    pub fn terminate(&mut self, name: &str) {
        let status = self.process(name).terminate(ENDS_WITHIN);
        assert!(status.success(), "{name} ended with {status}");
    }

    /// Starts the process of this role or stage again and waits until it is ready.
    pub async fn restart(&mut self, name: &str) {
        self.start_again(name);
        self.ready(self.resolve(name)).await;
    }

    /// Starts the process of this role or stage again and goes on.
    pub fn start_again(&mut self, name: &str) {
        self.spawn(self.resolve(name));
    }

    /// The API, at the first process that serves it.
    pub fn api(&self) -> Api {
        self.apis().remove(0)
    }

    /// The API, at every process that serves it.
    pub fn apis(&self) -> Vec<Api> {
        let addresses = self.members.values().filter_map(|member| member.api);
        addresses
            .map(|address| Api::new(address, OPERATOR_KEY, TENANT))
            .collect()
    }

    /// Sets a variable of the environment of whatever is started from now on.
    pub fn configure(&mut self, name: &str, value: &str) {
        self.plan.settings.insert(name.to_owned(), value.to_owned());
    }

    /// Where the process of this role or stage says how it is.
    pub fn health_address(&self, name: &str) -> SocketAddr {
        self.member(self.resolve(name)).health
    }

    /// Metrics of the process of this role or stage.
    pub async fn metrics(&self, name: &str) -> String {
        Self::metrics_at(self.health_address(name)).await
    }

    /// Metrics of the process that serves them at this address.
    ///
    /// # Panics
    /// When it does not answer.
    pub async fn metrics_at(address: SocketAddr) -> String {
        let answer = ask(address, "/metrics").await;
        String::from_utf8_lossy(&answer.expect("health is served").body).into_owned()
    }

    /// What the health server of the process of this role or stage answers.
    ///
    /// # Panics
    /// When it does not answer.
    pub async fn health(&self, name: &str, path: &str) -> Answer {
        let answer = self.try_health(name, path).await;
        answer.expect("health is served")
    }

    /// The same, of a process that may not serve its health yet.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn try_health(&self, name: &str, path: &str) -> Result<Answer, NoAnswer> {
        ask(self.health_address(name), path).await
    }

    /// Where each process serves its health and metrics.
    pub fn health_addresses(&self) -> Vec<SocketAddr> {
        self.members.values().map(|member| member.health).collect()
    }

    /// The broker, on Kafka.
    ///
    /// # Panics
    /// On the embedded log.
    pub fn broker(&self) -> &'static KafkaBroker {
        self.broker.expect("only on Kafka there is a broker")
    }

    /// How many records a topic got so far, on Kafka. Starts a program of Kafka's own, which takes
    /// a second of a CPU.
    pub fn records_written(&self, topic: &str) -> i64 {
        let topic = format!("{}{topic}", self.prefix);
        let ends = self.broker().tool(
            "org.apache.kafka.tools.GetOffsetShell",
            &["--topic", &topic],
        );
        // One line `topic:partition:offset` for each partition.
        let offsets = ends.lines().filter_map(|line| line.rsplit(':').next());
        offsets
            .filter_map(|offset| offset.parse::<i64>().ok())
            .sum()
    }

    /// What this installation's topics and groups begin with, on Kafka.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Which log it is.
    pub fn log(&self) -> LogKind {
        self.plan.log
    }

    /// The same directory as its process sees it, where that has a disk of its own.
    pub fn data_directory_inside(&self, name: &str) -> PathBuf {
        let name = self.resolve(name);
        let process = self.member(name).process.as_ref();
        let id = process.expect("it was started").id();
        let root = PathBuf::from(format!("/proc/{id}/root"));
        let directory = self.data_directory();
        root.join(directory.strip_prefix("/").expect("it is absolute"))
    }

    /// The directory of the embedded log, in `log` below it.
    pub fn data_directory(&self) -> PathBuf {
        self.directory.path().join("data")
    }
}

/// The command in a mount namespace of its own, with a file system in memory at the directory.
fn on_disk(bytes: u64, directory: &Path, command: &Command) -> Command {
    fs::create_dir_all(directory).expect("the directory can be made");
    let mut inside = Command::new("unshare");
    inside
        .args(["--user", "--map-root-user", "--mount", "sh", "-c"])
        .arg(r#"mount -t tmpfs -o size="$0" tmpfs "$1" && shift && exec "$@""#)
        .arg(bytes.to_string())
        .arg(directory)
        .arg(command.get_program())
        .args(command.get_args());
    if let Some(place) = command.get_current_dir() {
        inside.current_dir(place);
    }
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => inside.env(name, value),
            None => inside.env_remove(name),
        };
    }
    inside
}

/// Runs a command of the binary to its end and gives what it printed.
fn end(arguments: &[&str], mut command: Command) -> String {
    let output = command.output().expect("the binary starts");
    let (said, talk) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(
        output.status.success(),
        "postrider {arguments:?}: {}\n{said}\n{talk}",
        output.status
    );
    said.into_owned()
}

async fn ask(address: SocketAddr, path: &str) -> Result<Answer, NoAnswer> {
    let request = Request::get(path)
        .body(Body::empty())
        .expect("the request is valid");
    HttpClient::new(address).send(request).await
}
