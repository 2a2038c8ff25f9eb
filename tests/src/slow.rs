//! A proxy in front of a server that is far away: both directions have a rate for all connections together, requests
//! take time to arrive, answers break off. It counts the bytes that pass, and can pretend that a server ignores
//! conditions.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Bytes passed on at a time.
const PIECE_BYTES: usize = 16 << 10;

/// A rate in bytes a second for all who pass; 0: none.
#[derive(Debug, Default)]
struct Rate {
    bytes_per_s: AtomicU64,
    free_at: Mutex<Option<Instant>>,
    passed: AtomicU64,
}

impl Rate {
    fn pass(&self, bytes: usize) {
        self.passed.fetch_add(bytes as u64, SeqCst);
        let bytes_per_s = self.bytes_per_s.load(SeqCst);
        if bytes_per_s == 0 {
            return;
        }
        let now = Instant::now();
        let end = {
            let mut free_at = self.free_at.lock().unwrap();
            let end = free_at.map_or(now, |at| at.max(now))
                + Duration::from_secs_f64(bytes as f64 / bytes_per_s as f64);
            *free_at = Some(end);
            end
        };
        std::thread::sleep(end - now);
    }
}

#[derive(Debug, Default)]
struct Line {
    up: Rate,
    down: Rate,
    delay_ms: AtomicU64,
    requests: AtomicUsize,
    under_way: AtomicUsize,
    most_under_way: AtomicUsize,
    cut_after: AtomicU64,
    cuts: AtomicUsize,
    ignores_conditions: AtomicBool,
    ignored: AtomicUsize,
}

/// The proxy; its threads end with the process.
#[derive(Debug)]
pub struct Slow {
    port: u16,
    line: Arc<Line>,
}

impl Slow {
    /// Starts it in front of a port of this machine; it is fast to begin with.
    pub fn start(upstream: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let line = Arc::new(Line::default());
        let of_threads = line.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let line = of_threads.clone();
                std::thread::spawn(move || connection(&client, upstream, &line));
            }
        });
        Self { port, line }
    }

    /// `http://127.0.0.1:PORT`.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Bytes a second to and from the server; 0: as fast as it goes.
    pub fn rates(&self, up: u64, down: u64) {
        self.line.up.bytes_per_s.store(up, SeqCst);
        self.line.down.bytes_per_s.store(down, SeqCst);
    }

    /// How long each request is on its way.
    pub fn delay(&self, delay: Duration) {
        self.line.delay_ms.store(delay.as_millis() as u64, SeqCst);
    }

    /// Breaks the connections of the next `times` answers that are longer than `bytes`, behind so many.
    pub fn cut_answers(&self, times: usize, bytes: u64) {
        self.line.cut_after.store(bytes, SeqCst);
        self.line.cuts.store(times, SeqCst);
    }

    /// Answers still to be cut.
    pub fn cuts_left(&self) -> usize {
        self.line.cuts.load(SeqCst)
    }

    /// From now on a put that is refused for its condition is answered as if it had replaced the object.
    pub fn ignore_conditions(&self) {
        self.line.ignores_conditions.store(true, SeqCst);
    }

    /// How often that happened.
    pub fn ignored(&self) -> usize {
        self.line.ignored.load(SeqCst)
    }

    /// Bytes that went to the server, and that came from it, with all heads.
    pub fn passed(&self) -> (u64, u64) {
        (self.line.up.passed.load(SeqCst), self.line.down.passed.load(SeqCst))
    }

    /// Requests so far.
    pub fn requests(&self) -> usize {
        self.line.requests.load(SeqCst)
    }

    /// The most requests that were on their way at a time since the last call.
    pub fn most_at_a_time(&self) -> usize {
        self.line.most_under_way.swap(0, SeqCst)
    }
}

/// Passes one connection on, until either side closes it or it is cut.
fn connection(client: &TcpStream, upstream: u16, line: &Line) {
    let Ok(server) = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], upstream))) else { return };
    for stream in [client, &server] {
        let _ = stream.set_nodelay(true);
    }
    let (begins, answered) = (AtomicBool::new(true), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            copy(client, &server, |bytes| {
                // what follows an answer is a new request
                if begins.swap(false, SeqCst) {
                    answered.store(0, SeqCst);
                    line.requests.fetch_add(1, SeqCst);
                    let under_way = line.under_way.fetch_add(1, SeqCst) + 1;
                    line.most_under_way.fetch_max(under_way, SeqCst);
                    std::thread::sleep(Duration::from_millis(line.delay_ms.load(SeqCst)));
                    line.under_way.fetch_sub(1, SeqCst);
                }
                line.up.pass(bytes.len());
                Pass::On
            });
            let _ = server.shutdown(Shutdown::Write);
        });
        copy(&server, client, |bytes| {
            begins.store(true, SeqCst);
            line.down.pass(bytes.len());
            let passed = answered.fetch_add(bytes.len() as u64, SeqCst) + bytes.len() as u64;
            let cut = passed > line.cut_after.load(SeqCst)
                && line.cuts.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)).is_ok();
            if cut {
                return Pass::End;
            }
            if bytes.starts_with(b"HTTP/1.1 412") && line.ignores_conditions.load(SeqCst) {
                line.ignored.fetch_add(1, SeqCst);
                return Pass::Instead(
                    b"HTTP/1.1 200 OK\r\nETag: \"0\"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
                );
            }
            Pass::On
        });
        let _ = client.shutdown(Shutdown::Both);
        let _ = server.shutdown(Shutdown::Both);
    });
}

/// What becomes of a piece.
enum Pass {
    On,
    Instead(&'static [u8]),
    End,
}

fn copy(mut from: &TcpStream, mut to: &TcpStream, mut passes: impl FnMut(&[u8]) -> Pass) {
    let mut buffer = vec![0; PIECE_BYTES];
    while let Ok(count) = from.read(&mut buffer) {
        let sent = match passes(&buffer[..count]) {
            _ if count == 0 => return,
            Pass::On => to.write_all(&buffer[..count]),
            Pass::Instead(bytes) => {
                // What else belongs to the answer goes with the connection.
                let _ = to.write_all(bytes);
                return;
            }
            Pass::End => return,
        };
        if sent.is_err() {
            return;
        }
    }
}
