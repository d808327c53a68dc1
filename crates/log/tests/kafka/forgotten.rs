//! A broker that was away and comes back without knowing of itself: for a moment it answers that
//! there are no brokers, and clients that hear it forget every one, for good (librdkafka#5301).

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;
use postrider_log::kafka::KafkaLog;
use postrider_log::{Group, GroupEvent, Log, Offset, Producer, Reader, Target};
use postrider_tests::KafkaBroker;
use tokio::time::{Instant, sleep, timeout_at};

use crate::support::{PATIENCE, TOPIC, connect, create, join, numbered, producer};

/// How long everything may take to go on.
const GOES_ON_WITHIN: Duration = Duration::from_secs(60);
/// As long as the clients connect again, and ask: each time they do, the chance is that they forget
/// for good.
const FORGETFUL_FOR: Duration = Duration::from_secs(12);
const PAUSE: Duration = Duration::from_millis(200);
/// What takes the client a while to read, in two bytes.
const TOPICS: usize = 16_000;
/// The number of requests for metadata.
const METADATA: [u8; 2] = [0, 3];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_forgot_every_broker_are_replaced_and_nothing_is_lost() {
    let door = Door::open();
    let advertised = format!("PLAINTEXT://{}", door.address());
    let broker = KafkaBroker::start_with(&[("advertised.listeners", &advertised)]);
    door.lead_to(broker.bootstrap());
    let session = [
        ("session.timeout.ms", "6000"),
        ("heartbeat.interval.ms", "500"),
    ];
    let log = connect(&door.address(), &session);
    create(&log, 1).await;
    let mut work = Work::start(&log).await;
    work.goes_on("at first").await;
    let replaced = |log: &KafkaLog| -> u64 {
        let clients = log.clients();
        clients.iter().map(|client| client.replaced_total).sum()
    };
    assert_eq!(replaced(&log), 0, "{:?}", log.clients());
    door.forget();
    let asked = Instant::now() + PATIENCE;
    while door.answered() == 0 {
        assert!(Instant::now() < asked, "nobody asks");
        sleep(PAUSE).await;
    }
    sleep(FORGETFUL_FOR).await;
    door.remember();
    work.goes_on("when the broker knows itself again").await;
    let deadline = Instant::now() + PATIENCE;
    while let Some(dead) = log.clients().iter().find(|client| !client.alive) {
        assert!(Instant::now() < deadline, "{dead:?}");
        sleep(PAUSE).await;
    }
}

/// One client of each kind.
struct Work<'a> {
    log: &'a KafkaLog,
    producer: Box<dyn Producer>,
    reader: Box<dyn Reader>,
    group: Box<dyn Group>,
    done: Offset,
}

impl<'a> Work<'a> {
    async fn start(log: &'a KafkaLog) -> Self {
        Self {
            log,
            producer: producer(log, None).await,
            reader: log.reader(TOPIC).await.expect("a reader is made"),
            group: join(log, PAUSE).await,
            done: 0,
        }
    }

    /// Everything does its work within a minute.
    async fn goes_on(&mut self, when: &str) {
        let log = self.log;
        let deadline = Instant::now() + GOES_ON_WITHIN;
        let late = |what: &str| format!("{what} {when}: {:?}", log.clients());
        let end = timeout_at(deadline, self.append()).await;
        let end = end.unwrap_or_else(|_| panic!("{}", late("no append")));
        let read = timeout_at(deadline, self.read(end)).await;
        read.unwrap_or_else(|_| panic!("{}", late("no read")));
        let took = timeout_at(deadline, self.take(end)).await;
        took.unwrap_or_else(|_| panic!("{}", late("no records for a member")));
        let asked = timeout_at(deadline, async {
            while log.bounds(TOPIC, 0).await.is_err() {
                sleep(PAUSE).await;
            }
        });
        asked
            .await
            .unwrap_or_else(|_| panic!("{}", late("no answer")));
    }

    /// Appends a record, again while that fails, and tells where the next one goes.
    async fn append(&self) -> Offset {
        loop {
            let append = self
                .producer
                .append(TOPIC, Target::Partition(0), numbered(0));
            match append.await {
                Ok(position) => return position.offset + 1,
                Err(_) => sleep(PAUSE).await,
            }
        }
    }

    async fn read(&mut self, end: Offset) {
        loop {
            let read = self.reader.read(0, end - 1, 1 << 20, PAUSE).await;
            if read.is_ok_and(|batch| batch.next >= end) {
                return;
            }
            sleep(PAUSE).await;
        }
    }

    /// Takes records up to an offset; joins again when the member has failed.
    async fn take(&mut self, end: Offset) {
        while self.done < end {
            match self.group.next().await {
                Ok(GroupEvent::Assigned(assigned)) => {
                    self.group.start(assigned[0].partition, self.done);
                }
                Ok(GroupEvent::Records(records)) => {
                    assert_eq!(records[0].offset, self.done);
                    self.done = records[records.len() - 1].offset + 1;
                }
                Ok(GroupEvent::Revoke { .. }) => self.group.release(),
                Ok(GroupEvent::Lost(_)) => {}
                Ok(event) => panic!("{event:?}"),
                Err(_) => {
                    self.group.close().await;
                    self.group = join(self.log, PAUSE).await;
                }
            }
        }
    }
}

/// What stands before a broker. At times it answers questions for metadata itself: that there are
/// no brokers.
#[derive(Clone)]
struct Door(Arc<Shared>);

struct Shared {
    listener: TcpListener,
    broker: Mutex<String>,
    forgetful: AtomicBool,
    answered: AtomicUsize,
    /// Both ends of each connection that is open, or was.
    connections: Mutex<BTreeMap<usize, [TcpStream; 2]>>,
}

impl Door {
    fn open() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let door = Self(Arc::new(Shared {
            listener,
            broker: Mutex::default(),
            forgetful: AtomicBool::new(false),
            answered: AtomicUsize::new(0),
            connections: Mutex::default(),
        }));
        let shared = Arc::clone(&door.0);
        thread::spawn(move || shared.accept());
        door
    }

    fn address(&self) -> String {
        let address = self.0.listener.local_addr();
        address.expect("it is bound").to_string()
    }

    fn lead_to(&self, broker: String) {
        *self.0.broker.lock() = broker;
    }

    /// From now on there are no brokers; whoever was connected has to ask again.
    fn forget(&self) {
        self.0.forgetful.store(true, Ordering::SeqCst);
        for end in std::mem::take(&mut *self.0.connections.lock())
            .into_values()
            .flatten()
        {
            // It may be closed already.
            drop(end.shutdown(Shutdown::Both));
        }
    }

    fn remember(&self) {
        self.0.forgetful.store(false, Ordering::SeqCst);
    }

    /// How often it said that there are no brokers.
    fn answered(&self) -> usize {
        self.0.answered.load(Ordering::SeqCst)
    }
}

impl Shared {
    fn accept(self: Arc<Self>) {
        for (number, client) in self.listener.incoming().flatten().enumerate() {
            let broker = self.broker.lock().clone();
            let Ok(broker) = TcpStream::connect(broker) else {
                continue;
            };
            let twin = |stream: &TcpStream| stream.try_clone().expect("a stream has two handles");
            let ends = [twin(&client), twin(&broker)];
            self.connections.lock().insert(number, ends);
            let answers = Arc::new(Mutex::new(twin(&client)));
            let (shared, own) = (Arc::clone(&self), Arc::clone(&answers));
            let to_broker = twin(&broker);
            thread::spawn(move || shared.pass_requests(client, to_broker, &own));
            thread::spawn(move || pass_answers(broker, &answers));
        }
    }

    /// Until one end is closed.
    fn pass_requests(
        &self,
        mut client: TcpStream,
        mut broker: TcpStream,
        answers: &Mutex<TcpStream>,
    ) {
        while let Ok(request) = frame(&mut client) {
            let passed = if request[..2] == METADATA && self.forgetful.load(Ordering::SeqCst) {
                self.answered.fetch_add(1, Ordering::SeqCst);
                put(&mut answers.lock(), &no_brokers(&request))
            } else {
                put(&mut broker, &request)
            };
            if passed.is_err() {
                return;
            }
        }
        drop(broker.shutdown(Shutdown::Both));
    }
}

fn pass_answers(mut broker: TcpStream, client: &Mutex<TcpStream>) {
    while let Ok(answer) = frame(&mut broker) {
        if put(&mut client.lock(), &answer).is_err() {
            return;
        }
    }
    drop(client.lock().shutdown(Shutdown::Both));
}

/// The answer to a request for metadata in a version from 12 on: topics without partitions, and no
/// brokers. There are many topics, as the client forgets for good only if it is still reading when
/// its connections end.
fn no_brokers(request: &[u8]) -> Vec<u8> {
    let version = i16::from_be_bytes([request[2], request[3]]);
    assert!(version >= 12, "version {version}");
    let mut answer = request[4..8].to_vec();
    // No tags; no throttling, brokers, or name of the cluster; no controller.
    answer.extend([0, 0, 0, 0, 0, 1, 0, 0xff, 0xff, 0xff, 0xff]);
    // Lengths are one more than they are, seven bits a byte.
    answer.extend([
        ((TOPICS + 1) & 0x7f) as u8 | 0x80,
        ((TOPICS + 1) >> 7) as u8,
    ]);
    for number in 0..TOPICS {
        // No error; name, id, not internal, no partitions, no rights, no tags.
        answer.extend([0, 0, 5]);
        answer.extend(format!("{number:04x}").as_bytes());
        answer.extend([7; 16]);
        answer.extend([0, 1, 0x80, 0, 0, 0, 0]);
    }
    if version >= 13 {
        answer.extend([0, 0]);
    }
    answer.push(0);
    answer
}

fn frame(from: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    from.read_exact(&mut length)?;
    let mut frame = vec![0; u32::from_be_bytes(length) as usize];
    from.read_exact(&mut frame)?;
    Ok(frame)
}

fn put(to: &mut TcpStream, frame: &[u8]) -> io::Result<()> {
    let length = u32::try_from(frame.len()).expect("frames are short");
    to.write_all(&[&length.to_be_bytes(), frame].concat())
}
