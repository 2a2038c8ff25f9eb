//! A TCP proxy that loses acknowledgements: it passes a PUT on, lets the server answer, and cuts the connection instead of passing the answer back.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// The proxy; its threads end with the process.
#[derive(Debug)]
pub struct Lossy {
    port: u16,
    to_lose: Arc<AtomicUsize>,
    lost: Arc<AtomicUsize>,
}

impl Lossy {
    /// Starts it in front of a port of this machine.
    pub fn start(upstream: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let (to_lose, lost) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let counters = (to_lose.clone(), lost.clone());
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let (to_lose, lost) = counters.clone();
                std::thread::spawn(move || connection(&client, upstream, &to_lose, &lost));
            }
        });
        Self { port, to_lose, lost }
    }

    /// `http://127.0.0.1:PORT`.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Loses the answers to the next `count` PUTs.
    pub fn lose(&self, count: usize) {
        self.to_lose.store(count, Ordering::SeqCst);
    }

    /// Answers lost so far.
    pub fn lost(&self) -> usize {
        self.lost.load(Ordering::SeqCst)
    }
}

/// Passes one connection on, until either side closes it or an answer is lost.
fn connection(client: &TcpStream, upstream: u16, to_lose: &AtomicUsize, lost: &AtomicUsize) {
    let Ok(server) = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], upstream))) else { return };
    let (is_put, begins) = (AtomicBool::new(false), AtomicBool::new(true));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            copy(client, &server, |bytes| {
                // what follows an answer is a new request
                if begins.swap(false, Ordering::SeqCst) {
                    is_put.store(bytes.starts_with(b"PUT "), Ordering::SeqCst);
                }
                true
            });
            let _ = server.shutdown(Shutdown::Write);
        });
        copy(&server, client, |_| {
            begins.store(true, Ordering::SeqCst);
            let loses = is_put.swap(false, Ordering::SeqCst)
                && to_lose
                    .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1))
                    .is_ok();
            if loses {
                lost.fetch_add(1, Ordering::SeqCst);
            }
            !loses
        });
        let _ = client.shutdown(Shutdown::Both);
        let _ = server.shutdown(Shutdown::Both);
    });
}

fn copy(mut from: &TcpStream, mut to: &TcpStream, mut passes: impl FnMut(&[u8]) -> bool) {
    let mut buffer = vec![0; 256 << 10];
    while let Ok(count) = from.read(&mut buffer) {
        if count == 0 || !passes(&buffer[..count]) || to.write_all(&buffer[..count]).is_err() {
            return;
        }
    }
}
