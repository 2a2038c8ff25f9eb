//! A proxy that makes a server that speaks S3 one with archive classes: what is stored as `GLACIER` or `DEEP_ARCHIVE` cannot be read before it was thawed, and that takes a
//! while. Answers are S3's: `InvalidObjectState`, `x-amz-restore`, 202 and 200 to `RestoreObject`, 409 `RestoreAlreadyInProgress`. Everything else, and every signature, is
//! the server's affair.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

const CLASSES: [&str; 2] = ["GLACIER", "DEEP_ARCHIVE"];

/// The proxy; its threads end with the process.
#[derive(Debug)]
pub struct Archive {
    port: u16,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    upstream: u16,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    thaw_takes: Duration,
    objects: HashMap<String, Object>,
    counts: Counts,
}

#[derive(Debug)]
struct Object {
    class: String,
    /// When the copy can be read, if it was asked for.
    thawed_at: Option<Instant>,
}

impl Object {
    fn is_readable(&self) -> bool {
        self.thawed_at.is_some_and(|at| at <= Instant::now())
    }
}

/// What was asked of archived objects.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Counts {
    /// Reads that were refused.
    pub refused: usize,
    /// Reads of thawed copies.
    pub read: usize,
    /// Requests to thaw that were accepted.
    pub thaws: usize,
    /// Requests to thaw what was being thawed.
    pub repeated: usize,
    /// Looks at an object's head.
    pub heads: usize,
}

/// A request or an answer.
struct Message {
    first: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Message {
    /// Reads one; `None` at the end of the connection. Without a length, an answer's body goes to the end.
    fn read(from: &mut BufReader<TcpStream>, to_end: bool, no_body: bool) -> Option<Self> {
        let mut first = String::new();
        from.read_line(&mut first).ok().filter(|bytes| *bytes > 0)?;
        let mut headers = Vec::new();
        loop {
            let mut line = String::new();
            from.read_line(&mut line).ok().filter(|bytes| *bytes > 0)?;
            match line.trim_end().split_once(':') {
                Some((name, value)) => headers.push((name.to_ascii_lowercase(), value.trim().to_owned())),
                None => break,
            }
        }
        let mut message = Self { first: first.trim_end().to_owned(), headers, body: Vec::new() };
        if !no_body {
            match message.header("content-length").and_then(|text| text.parse().ok()) {
                Some(len) => {
                    message.body.resize(len, 0);
                    from.read_exact(&mut message.body).ok()?;
                }
                None if to_end => drop(from.read_to_end(&mut message.body).ok()?),
                None => assert!(message.header("transfer-encoding").is_none(), "a body in chunks"),
            }
        }
        Some(message)
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    fn set(&mut self, name: &str, value: &str) {
        self.headers.retain(|(known, _)| known != name);
        self.headers.push((name.to_owned(), value.to_owned()));
    }

    fn write(&self, mut to: &TcpStream) {
        let headers: String =
            self.headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let head = format!("{}\r\n{headers}\r\n", self.first);
        // whoever does not listen any more does not matter
        let _ = to.write_all(head.as_bytes()).and_then(|()| to.write_all(&self.body));
    }

    /// One of the archive's own.
    fn answer(status: &str, code: &str, more: &str) -> Self {
        let body = match code {
            "" => String::new(),
            code => format!(
                "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code><Message>The operation is not valid for the object's state</Message>{more}<RequestId>ARCHIVE1</RequestId></Error>"
            ),
        };
        let mut message =
            Self { first: format!("HTTP/1.1 {status}"), headers: Vec::new(), body: body.into_bytes() };
        message.set("content-length", &message.body.len().to_string());
        message.set("content-type", "application/xml");
        message.set("x-amz-request-id", "ARCHIVE1");
        message.set("connection", "close");
        message
    }

    fn status(&self) -> &str {
        self.first.split(' ').nth(1).unwrap_or_default()
    }
}

impl Archive {
    /// Starts it in front of a port of this machine. Thawing takes so long.
    pub fn start(upstream: u16, thaw_takes: Duration) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = State { thaw_takes, objects: HashMap::new(), counts: Counts::default() };
        let shared = Arc::new(Shared { upstream, state: Mutex::new(state) });
        let serving = shared.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let shared = serving.clone();
                std::thread::spawn(move || shared.connection(client));
            }
        });
        Self { port, shared }
    }

    /// `http://127.0.0.1:PORT`.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Objects in archive classes whose path contains `part`.
    pub fn archived(&self, part: &str) -> usize {
        self.shared.state().objects.keys().filter(|path| path.contains(part)).count()
    }

    /// What was asked since the last call.
    pub fn take_counts(&self) -> Counts {
        std::mem::take(&mut self.shared.state().counts)
    }

    /// The copies expire: everything is archived again.
    pub fn freeze(&self) {
        self.shared.state().objects.values_mut().for_each(|object| object.thawed_at = None);
    }

    /// A lifecycle rule moved this object into a class, and no other.
    pub fn move_only(&self, path: &str, class: &str) {
        let object = Object { class: class.to_owned(), thawed_at: None };
        self.shared.state().objects = HashMap::from([(path.to_owned(), object)]);
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// One request, and the end: clients come again.
    fn connection(&self, client: TcpStream) {
        let mut reader = BufReader::new(client.try_clone().unwrap());
        let Some(request) = Message::read(&mut reader, false, false) else { return };
        self.respond(&request).write(&client);
    }

    fn respond(&self, request: &Message) -> Message {
        let mut words = request.first.split(' ');
        let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        if method == "POST" && query.split('&').any(|part| part == "restore" || part == "restore=") {
            return self.restore(request, path);
        }
        if method == "GET" && query.is_empty() {
            let mut state = self.state();
            let refused = state.objects.get(path).map(|object| (object.is_readable(), object.class.clone()));
            match refused {
                Some((false, class)) => {
                    state.counts.refused += 1;
                    let more = format!("<StorageClass>{class}</StorageClass>");
                    return Message::answer("403 Forbidden", "InvalidObjectState", &more);
                }
                Some((true, _)) => state.counts.read += 1,
                None => {}
            }
        }
        let mut answer = self.pass_on(request, method);
        match method {
            "PUT" if query.is_empty() && answer.status() == "200" => {
                let class = request.header("x-amz-storage-class").filter(|class| CLASSES.contains(class));
                if let Some(class) = class {
                    let object = Object { class: class.to_owned(), thawed_at: None };
                    self.state().objects.insert(path.to_owned(), object);
                }
            }
            "DELETE" if query.is_empty() => drop(self.state().objects.remove(path)),
            "HEAD" if answer.status() == "200" => {
                let mut state = self.state();
                if let Some(object) = state.objects.get(path) {
                    answer.set("x-amz-storage-class", &object.class);
                    match object.thawed_at {
                        None => {}
                        Some(at) if at > Instant::now() => {
                            answer.set("x-amz-restore", "ongoing-request=\"true\"")
                        }
                        Some(_) => {
                            let text =
                                "ongoing-request=\"false\", expiry-date=\"Fri, 21 Dec 2040 00:00:00 GMT\"";
                            answer.set("x-amz-restore", text);
                        }
                    }
                    state.counts.heads += 1;
                }
            }
            _ => {}
        }
        answer
    }

    fn restore(&self, request: &Message, path: &str) -> Message {
        // The server knows no such request, but it checks the signature first.
        let passed = self.pass_on(request, "POST");
        let said = String::from_utf8_lossy(&passed.body).into_owned();
        if ["SignatureDoesNotMatch", "InvalidAccessKeyId", "AccessDenied"]
            .iter()
            .any(|code| said.contains(code))
        {
            return passed;
        }
        let body = String::from_utf8_lossy(&request.body);
        let checksum = request.header("x-amz-checksum-sha256").or(request.header("content-md5"));
        let tier =
            ["Expedited", "Standard", "Bulk"].iter().find(|t| body.contains(&format!("<Tier>{t}</Tier>")));
        let (Some(tier), true, true) = (tier, body.contains("<Days>"), checksum.is_some()) else {
            return Message::answer("400 Bad Request", "MalformedXML", "");
        };
        let mut state = self.state();
        let takes = state.thaw_takes;
        let Some(object) = state.objects.get_mut(path) else {
            return Message::answer(
                "403 Forbidden",
                "InvalidObjectState",
                "<StorageClass>STANDARD</StorageClass>",
            );
        };
        if *tier == "Expedited" && object.class == "DEEP_ARCHIVE" {
            return Message::answer("400 Bad Request", "InvalidArgument", "");
        }
        match object.thawed_at {
            None => {
                object.thawed_at = Some(Instant::now() + takes);
                state.counts.thaws += 1;
                Message::answer("202 Accepted", "", "")
            }
            Some(at) if at > Instant::now() => {
                state.counts.repeated += 1;
                Message::answer("409 Conflict", "RestoreAlreadyInProgress", "")
            }
            Some(_) => Message::answer("200 OK", "", ""),
        }
    }

    fn pass_on(&self, request: &Message, method: &str) -> Message {
        let address = SocketAddr::from(([127, 0, 0, 1], self.upstream));
        let failed = || Message::answer("502 Bad Gateway", "InternalError", "");
        let Ok(server) = TcpStream::connect(address) else { return failed() };
        let headers = request.headers.clone();
        let mut passed = Message { first: request.first.clone(), headers, body: request.body.clone() };
        passed.set("connection", "close");
        passed.write(&server);
        let mut reader = BufReader::new(server);
        let Some(mut answer) = Message::read(&mut reader, true, method == "HEAD") else { return failed() };
        answer.set("connection", "close");
        answer
    }
}
