//! Servers that speak like cloud storage, on free ports of the loopback, and a proxy that injects faults. Each is ended by its own process id when it is dropped.
//!
//! `tests/servers DIR` installs them; `PENSTOCK_TEST_SERVERS` names the directory.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// Access key id of the one who may do everything.
pub const KEY_ID: &str = "AKIDPENSTOCKTEST";
/// Its secret; tests look for it in output.
pub const SECRET: &str = "SecretThatMustNeverBeShown";
/// May read and list.
pub const READER: (&str, &str) = ("AKIDREADER", "ReaderSecret");
/// May do nothing in the buckets of tests.
pub const STRANGER: (&str, &str) = ("AKIDSTRANGER", "StrangerSecret");
/// Bucket of most tests.
pub const BUCKET: &str = "penstock-test";
/// Account of Azurite: its own, documented one.
pub const AZURE_ACCOUNT: &str = "devstoreaccount1";
/// Its key, which is public.
pub const AZURE_KEY: &str =
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

const START_PATIENCE: Duration = Duration::from_secs(60);

/// Where things are kept that tests need and that are no packages of this machine.
pub fn directory() -> PathBuf {
    std::env::var_os("PENSTOCK_TEST_SERVERS").map_or_else(
        || std::env::home_dir().unwrap_or_default().join(".cache/penstock-servers"),
        PathBuf::from,
    )
}

/// Where the servers are installed.
///
/// # Panics
/// If they are not.
pub fn home() -> PathBuf {
    let dir = directory();
    assert!(
        dir.join("installed").is_file(),
        "no servers in {}: run `bash tests/run`, or `bash tests/servers {0}`",
        dir.display()
    );
    dir
}

/// A port that was free a moment ago.
pub fn free_port() -> u16 {
    free_ports::<1>()[0]
}

/// Ports that nobody listens on, all different: asked for one by one, the same may come twice.
pub fn free_ports<const N: usize>() -> [u16; N] {
    let listeners: [TcpListener; N] = std::array::from_fn(|_| TcpListener::bind(("127.0.0.1", 0)).unwrap());
    std::array::from_fn(|n| listeners[n].local_addr().unwrap().port())
}

/// A running server.
#[derive(Debug)]
struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    fn start(program: &Path, args: &[impl AsRef<OsStr>], log: PathBuf, env: &[(&str, &str)]) -> Self {
        let file = std::fs::File::options().create(true).append(true).open(&log).unwrap();
        let child = Command::new(program)
            .args(args)
            .envs(env.iter().copied())
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .spawn()
            .unwrap_or_else(|e| panic!("cannot run {}: {e}", program.display()));
        Self { child, log }
    }

    /// Waits until `ready` says so; an error has the end of the log.
    fn comes(&mut self, mut ready: impl FnMut() -> bool) -> Result<(), String> {
        let end = Instant::now() + START_PATIENCE;
        while !ready() {
            let ended = self.child.try_wait().unwrap();
            if ended.is_some() || Instant::now() > end {
                let log = std::fs::read_to_string(&self.log).unwrap_or_default();
                let tail = &log[log.floor_char_boundary(log.len().saturating_sub(3000))..];
                return Err(format!("a server did not start ({ended:?}):\n{tail}"));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// The same; panics if it does not come.
    fn wait(&mut self, ready: impl FnMut() -> bool) {
        self.comes(ready).unwrap_or_else(|why| panic!("{why}"));
    }

    fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Sends a request and returns all that comes back.
fn raw(port: u16, request: &str) -> Option<String> {
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).ok()?;
    Some(String::from_utf8_lossy(&answer).into_owned())
}

/// One HTTP/1.1 request; `None` if nobody answers.
pub fn http(port: u16, method: &str, path: &str, body: &str) -> Option<(u16, String)> {
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let answer = raw(port, &request)?;
    let status = answer.split(' ').nth(1)?.parse().ok()?;
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    Some((status, body.to_owned()))
}

fn accepts(port: u16) -> bool {
    TcpStream::connect_timeout(&SocketAddr::from(([127, 0, 0, 1], port)), Duration::from_secs(1)).is_ok()
}

/// Signature version 4 by hand, with nothing but Python's own library.
const SIGNED: &str = r#"
import datetime, hashlib, hmac, http.client, json, sys, urllib.parse
port, key, secret, method, path, headers, body = sys.argv[1:]
host, now, body = f"127.0.0.1:{port}", datetime.datetime.now(datetime.timezone.utc), body.encode()
path, _, query = path.partition("?")
pairs = sorted(urllib.parse.parse_qsl(query, keep_blank_values=True))
query = "&".join(f"{urllib.parse.quote(k, safe='-_.~')}={urllib.parse.quote(v, safe='-_.~')}" for k, v in pairs)
date, digest = now.strftime("%Y%m%dT%H%M%SZ"), hashlib.sha256(body).hexdigest()
headers = {k.lower(): v for k, v in json.loads(headers).items()} | {"host": host, "x-amz-date": date, "x-amz-content-sha256": digest}
names = sorted(headers)
canonical = "\n".join([method, path, query, *(f"{n}:{headers[n]}" for n in names), "", ";".join(names), digest])
scope = f"{date[:8]}/us-east-1/s3/aws4_request"
text = "\n".join(["AWS4-HMAC-SHA256", date, scope, hashlib.sha256(canonical.encode()).hexdigest()])
sign = ("AWS4" + secret).encode()
for part in (date[:8], "us-east-1", "s3", "aws4_request", text):
    sign = hmac.new(sign, part.encode(), hashlib.sha256).digest()
headers["authorization"] = f"AWS4-HMAC-SHA256 Credential={key}/{scope}, SignedHeaders={';'.join(names)}, Signature={sign.hex()}"
connection = http.client.HTTPConnection(host)
connection.request(method, path + ("?" + query if query else ""), body or None, headers)
answer = connection.getresponse()
print(json.dumps({"status": answer.status, "headers": {k.lower(): v for k, v in answer.getheaders()}, "body": answer.read().decode("utf-8", "replace")}))
"#;

/// What the S3 gateway answered.
#[derive(Debug)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Body.
    pub body: String,
    /// Headers, in lower case.
    pub headers: Value,
}

/// SeaweedFS with its S3 gateway.
#[derive(Debug)]
pub struct Seaweed {
    process: Process,
    dir: PathBuf,
    ports: [u16; 8],
}

impl Seaweed {
    /// Starts it on an empty directory, with [`BUCKET`].
    pub fn start(dir: &Path) -> Self {
        std::fs::create_dir_all(dir.join("data")).unwrap();
        let identity = |name: &str, (id, secret): (&str, &str), actions: &[&str]| serde_json::json!({"name": name, "credentials": [{"accessKey": id, "secretKey": secret}], "actions": actions});
        let identities = [
            identity("admin", (KEY_ID, SECRET), &["Admin", "Read", "List", "Tagging", "Write"]),
            identity("reader", READER, &["Read", "List"]),
            identity("stranger", STRANGER, &["Read:elsewhere"]),
        ];
        let config = serde_json::json!({ "identities": identities });
        std::fs::write(dir.join("s3.json"), config.to_string()).unwrap();
        let mut left = 5;
        loop {
            let ports = free_ports();
            let mut seaweed = Self { process: Self::spawn(dir, &ports), dir: dir.to_owned(), ports };
            match seaweed.comes() {
                Ok(()) => {
                    seaweed.create_bucket(BUCKET);
                    return seaweed;
                }
                // Somebody took one of the ports between the look and the start: others.
                Err(why) if left > 0 && why.contains("address already in use") => {
                    left -= 1;
                    drop(seaweed);
                    std::fs::remove_file(dir.join("log")).unwrap();
                    std::fs::remove_dir_all(dir.join("data")).unwrap();
                    std::fs::create_dir_all(dir.join("data")).unwrap();
                }
                Err(why) => panic!("{why}"),
            }
        }
    }

    fn spawn(dir: &Path, ports: &[u16; 8]) -> Process {
        let mut args: Vec<String> = vec!["-logtostderr".into(), "server".into()];
        args.extend(
            ["ip=127.0.0.1", "ip.bind=127.0.0.1", "filer", "s3", "volume.max=0", "master.telemetry=false"]
                .map(|a| format!("-{a}")),
        );
        args.extend(
            [
                "s3.port.iceberg=0",
                "s3.port.lance=0",
                "master.volumeSizeLimitMB=256",
                "s3.autoCreateBucket=false",
            ]
            .map(|a| format!("-{a}")),
        );
        args.push(format!("-dir={}", dir.join("data").display()));
        args.push(format!("-s3.config={}", dir.join("s3.json").display()));
        let names = [
            "master.port",
            "master.port.grpc",
            "volume.port",
            "volume.port.grpc",
            "filer.port",
            "filer.port.grpc",
            "s3.port",
            "s3.port.grpc",
        ];
        args.extend(names.iter().zip(ports).map(|(name, port)| format!("-{name}={port}")));
        Process::start(&home().join("venv/bin/weed"), &args, dir.join("log"), &[])
    }

    fn comes(&mut self) -> Result<(), String> {
        let port = self.port();
        // 403: it asks for a signature, so the gateway, and the filer behind it, are there
        self.process
            .comes(|| http(port, "GET", "/", "").is_some_and(|(status, _)| status == 403 || status == 200))?;
        let volume = self.ports[2];
        self.process.comes(|| http(volume, "GET", "/status", "").is_some_and(|(status, _)| status == 200))
    }

    fn wait(&mut self) {
        self.comes().unwrap_or_else(|why| panic!("{why}"));
    }

    /// Port of the S3 gateway.
    pub fn port(&self) -> u16 {
        self.ports[6]
    }

    /// `http://127.0.0.1:PORT`.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port())
    }

    /// Makes a bucket.
    pub fn create_bucket(&mut self, name: &str) {
        let master = format!("-master=127.0.0.1:{}.{}", self.ports[0], self.ports[1]);
        let end = Instant::now() + START_PATIENCE;
        loop {
            let mut shell = Command::new(home().join("venv/bin/weed"))
                .args(["shell", &master])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            let command = format!("s3.bucket.create -name {name}\n");
            shell.stdin.take().unwrap().write_all(command.as_bytes()).unwrap();
            let output = shell.wait_with_output().unwrap();
            let said = String::from_utf8_lossy(&output.stdout).into_owned()
                + &String::from_utf8_lossy(&output.stderr);
            if said.contains(&format!("created bucket {name}")) {
                return;
            }
            assert!(Instant::now() < end, "cannot create the bucket {name}: {said}");
            std::thread::sleep(Duration::from_millis(300));
        }
    }

    /// Makes a bucket with versioning and Object Lock.
    pub fn create_locked_bucket(&self, name: &str) {
        let made = self.ask("PUT", &format!("/{name}"), &[("x-amz-bucket-object-lock-enabled", "true")], "");
        assert_eq!(made.status, 200, "no bucket with Object Lock: {made:?}");
    }

    /// A request to the S3 gateway that is signed by somebody else's code than the program's, as whoever has the keys can make it.
    pub fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        let headers: serde_json::Map<String, Value> =
            headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).into())).collect();
        let output = Command::new(home().join("venv/bin/python"))
            .args(["-c", SIGNED, &self.port().to_string(), KEY_ID, SECRET, method, path])
            .args([&Value::from(headers).to_string(), body])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        let answer: Value = serde_json::from_str(&said)
            .unwrap_or_else(|_| panic!("{method} {path}: {}", String::from_utf8_lossy(&output.stderr)));
        Answer {
            status: answer["status"].as_u64().unwrap_or(0) as u16,
            body: answer["body"].as_str().unwrap_or_default().to_owned(),
            headers: answer["headers"].clone(),
        }
    }

    /// Objects of a bucket under a prefix that is a directory of its own, at most two levels deep, as the filer lists them.
    pub fn objects(&self, bucket: &str, prefix: &str) -> usize {
        let list = |path: &str| -> Vec<(String, bool)> {
            let url = format!("{path}/?limit=10000");
            let request = format!("GET {url} HTTP/1.0\r\nAccept: application/json\r\n\r\n");
            let answer = raw(self.ports[4], &request).unwrap_or_default();
            let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
            let listing: Value = serde_json::from_str(body).unwrap_or(Value::Null);
            let entries = listing["Entries"].as_array().cloned().unwrap_or_default();
            let entry = |e: &Value| {
                let is_dir = e["Mode"].as_u64().unwrap_or(0) & (1 << 31) != 0;
                (e["FullPath"].as_str().unwrap_or_default().to_owned(), is_dir)
            };
            entries.iter().map(entry).collect()
        };
        let top = list(&format!("/buckets/{bucket}/{prefix}"));
        top.iter().map(|(path, is_dir)| if *is_dir { list(path).len() } else { 1 }).sum()
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts it again on the same data and ports.
    pub fn restart(&mut self) {
        self.process = Self::spawn(&self.dir, &self.ports);
        self.wait();
    }
}

/// The proxy that injects faults.
#[derive(Debug)]
pub struct Microburst {
    _process: Process,
    port: u16,
}

impl Microburst {
    /// Starts it in front of a server; it signs again, since the host is another one.
    pub fn start(upstream: &str, dir: &Path) -> Self {
        let port = free_port();
        let args = ["--upstream", upstream, "--port", &port.to_string(), "--resign"];
        let env = [("AWS_ACCESS_KEY_ID", KEY_ID), ("AWS_SECRET_ACCESS_KEY", SECRET)];
        let program = home().join("venv/bin/microburst");
        let mut process = Process::start(&program, &args, dir.join("microburst.log"), &env);
        process
            .wait(|| http(port, "GET", "/_microburst/health", "").is_some_and(|(status, _)| status == 200));
        Self { _process: process, port }
    }

    /// `http://127.0.0.1:PORT`.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    fn ask(&self, method: &str, what: &str, body: &str) -> Value {
        let (status, answer) = http(self.port, method, &format!("/_microburst/{what}"), body).unwrap();
        assert!(status < 300, "{method} {what}: {status} {answer}");
        serde_json::from_str(answer.trim()).unwrap_or(Value::Null)
    }

    /// Replaces all rules, and forgets what was injected.
    pub fn rules(&self, rules: &Value) {
        self.ask("POST", "rules", &rules.to_string());
        self.ask("DELETE", "fired", "");
    }

    /// Faults injected since.
    pub fn fired(&self) -> usize {
        self.ask("GET", "fired?limit=100000", "").as_array().map_or(0, Vec::len)
    }
}

/// Azurite, with a container [`BUCKET`].
#[derive(Debug)]
pub struct Azurite {
    _process: Process,
    port: u16,
}

/// Azure wants even the making of a container signed.
const MAKE_CONTAINER: &str = r#"
import base64, email.utils, hashlib, hmac, sys, urllib.request
port, account, key, name = sys.argv[1:]
date, version = email.utils.formatdate(usegmt=True), "2021-12-02"
text = "PUT" + "\n" * 12 + f"x-ms-date:{date}\nx-ms-version:{version}\n/{account}/{account}/{name}\nrestype:container"
sign = base64.b64encode(hmac.new(base64.b64decode(key), text.encode(), hashlib.sha256).digest()).decode()
head = {"x-ms-date": date, "x-ms-version": version, "Content-Length": "0", "Authorization": f"SharedKey {account}:{sign}"}
url = f"http://127.0.0.1:{port}/{account}/{name}?restype=container"
urllib.request.urlopen(urllib.request.Request(url, method="PUT", headers=head)).read()
"#;

impl Azurite {
    /// Starts it, in memory.
    pub fn start(dir: &Path) -> Self {
        let port = free_port();
        let script = home().join("azurite/node_modules/azurite/dist/src/blob/main.js");
        let mut args = vec![script.into_os_string()];
        args.extend(
            [
                "--inMemoryPersistence",
                "--silent",
                "--disableTelemetry",
                "--skipApiVersionCheck",
                "--blobHost",
                "127.0.0.1",
                "--blobPort",
            ]
            .map(Into::into),
        );
        args.push(port.to_string().into());
        let mut process = Process::start(&home().join("node"), &args, dir.join("azurite.log"), &[]);
        process.wait(|| accepts(port));
        let made = Command::new(home().join("venv/bin/python"))
            .args(["-c", MAKE_CONTAINER, &port.to_string(), AZURE_ACCOUNT, AZURE_KEY, BUCKET])
            .output()
            .unwrap();
        assert!(made.status.success(), "no container: {}", String::from_utf8_lossy(&made.stderr));
        Self { _process: process, port }
    }

    /// `http://127.0.0.1:PORT/ACCOUNT`.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}/{AZURE_ACCOUNT}", self.port)
    }
}
