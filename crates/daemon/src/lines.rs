//! Output that never makes anybody wait: lines gather in a bounded queue, and a thread of their own
//! writes them. A line that finds no room, because nobody reads what is written, is dropped and
//! counted.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use parking_lot::{Condvar, Mutex, MutexGuard};

/// What a line takes beside its bytes.
const LINE_OVERHEAD_BYTES: usize = 32;
/// Pause before a destination is asked again that does not block, as another process may have made
/// it, and is full.
const FULL_PAUSE: Duration = Duration::from_millis(20);

/// A queue of lines for one destination. Clones share it.
#[derive(Debug, Clone)]
pub struct Lines(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
    bytes_max: usize,
}

#[derive(Debug, Default)]
struct Queue {
    lines: VecDeque<Box<[u8]>>,
    bytes: usize,
    /// A line was taken and is not yet written.
    writing: bool,
    dropped_total: u64,
}

impl Queue {
    fn is_done(&self) -> bool {
        self.lines.is_empty() && !self.writing
    }
}

impl Lines {
    /// Starts the thread of this name that writes to a copy of the descriptor, so that whoever else
    /// writes there does not wait for a lock. `bytes_max` is what may wait. When lines were dropped
    /// and there is room again, `say_dropped` is told how many; it may write lines.
    ///
    /// # Errors
    /// When the descriptor cannot be copied or the thread not started.
    pub fn start(
        name: &str,
        destination: impl AsFd,
        bytes_max: usize,
        say_dropped: impl Fn(u64) + Send + 'static,
    ) -> io::Result<Self> {
        let destination = File::from(destination.as_fd().try_clone_to_owned()?);
        let lines = Self::queue(bytes_max);
        let written = lines.clone();
        thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || written.write_to(destination, say_dropped))?;
        Ok(lines)
    }

    fn queue(bytes_max: usize) -> Self {
        Self(Arc::new(Shared {
            queue: Mutex::default(),
            changed: Condvar::new(),
            bytes_max,
        }))
    }

    /// Hands over what is to be written in one piece, or drops it. Never waits.
    pub fn push(&self, line: &[u8]) {
        let mut queue = self.lock();
        let bytes = line.len() + LINE_OVERHEAD_BYTES;
        if queue.bytes + bytes > self.0.bytes_max {
            queue.dropped_total += 1;
            return;
        }
        queue.bytes += bytes;
        queue.lines.push_back(line.into());
        drop(queue);
        self.0.changed.notify_all();
    }

    /// Lines dropped since the start.
    pub fn dropped_total(&self) -> u64 {
        self.lock().dropped_total
    }

    /// Waits until all that was handed over is written, at most this long.
    pub fn flush(&self, at_most: Duration) {
        let waits = |queue: &mut Queue| !queue.is_done();
        let changed = &self.0.changed;
        changed.wait_while_for(&mut self.lock(), waits, at_most);
    }

    fn write_to(&self, mut destination: impl Write, say_dropped: impl Fn(u64)) {
        let mut said = 0;
        loop {
            let line = self.take();
            let written = write_whole(&mut destination, &line);
            let mut queue = self.lock();
            queue.writing = false;
            queue.dropped_total += u64::from(written.is_err());
            let has_room = queue.bytes <= self.0.bytes_max / 2;
            let dropped = queue.dropped_total;
            drop(queue);
            self.0.changed.notify_all();
            if written.is_ok() && has_room && dropped > said {
                say_dropped(dropped - said);
                said = dropped;
            }
        }
    }

    fn take(&self) -> Box<[u8]> {
        let mut queue = self.lock();
        loop {
            if let Some(line) = queue.lines.pop_front() {
                queue.bytes -= line.len() + LINE_OVERHEAD_BYTES;
                queue.writing = true;
                return line;
            }
            self.0.changed.wait(&mut queue);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.0.queue.lock()
    }
}

/// Writes the line to its end, also where that does not block and is full for a while.
fn write_whole(destination: &mut impl Write, mut line: &[u8]) -> io::Result<()> {
    while !line.is_empty() {
        match destination.write(line) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => line = &line[written..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => thread::sleep(FULL_PAUSE),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// What is written in one call is one line.
impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::sync::OnceLock;

    use super::*;

    #[test]
    fn a_pipe_that_nobody_reads_costs_lines_and_no_time() {
        let (reader, writer) = io::pipe().unwrap();
        let own = Arc::new(OnceLock::<Lines>::new());
        // Several times what a pipe holds.
        let (saying, bytes_max) = (own.clone(), 512 << 10);
        let lines = Lines::start("test-lines", &writer, bytes_max, move |dropped| {
            saying
                .wait()
                .push(format!("dropped {dropped}\n").as_bytes());
        })
        .unwrap();
        own.set(lines.clone()).unwrap();
        let line = [[b'x'; 1023].as_slice(), b"\n"].concat();
        let mut pushed = 0;
        while lines.dropped_total() < 100 {
            lines.push(&line);
            pushed += 1;
            assert!(pushed < 1_000_000, "a pipe takes little");
        }
        lines.flush(Duration::from_millis(50));
        assert!(!lines.lock().is_done(), "nobody reads");
        let dropped = lines.dropped_total();
        // Somebody reads: what had room comes, and then how much had none.
        let mut came = 0;
        for text in BufReader::new(reader).lines() {
            let text = text.unwrap();
            if let Some(said) = text.strip_prefix("dropped ") {
                assert_eq!(said, dropped.to_string());
                break;
            }
            came += 1;
        }
        lines.flush(Duration::from_secs(10));
        assert!(lines.lock().is_done());
        assert!(came <= pushed - dropped);
        assert_eq!(lines.dropped_total(), dropped);
    }

    #[test]
    fn what_cannot_be_written_is_counted() {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let lines = Lines::start("test-lines", &writer, 1 << 10, |_| {}).unwrap();
        lines.push(b"lost\n");
        lines.flush(Duration::from_secs(10));
        assert_eq!(lines.dropped_total(), 1);
    }

    #[test]
    fn a_destination_that_does_not_block_gets_whole_lines() {
        /// Takes three bytes, then none for once.
        #[derive(Default)]
        struct Hesitant(Vec<u8>, bool);
        impl Write for Hesitant {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.1 = !self.1;
                if !self.1 {
                    return Err(io::ErrorKind::WouldBlock.into());
                }
                let taken = bytes.len().min(3);
                self.0.extend_from_slice(&bytes[..taken]);
                Ok(taken)
            }

            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut destination = Hesitant::default();
        write_whole(&mut destination, b"a whole line\n").unwrap();
        assert_eq!(destination.0, b"a whole line\n");
    }
}
