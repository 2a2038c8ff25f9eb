//! The server: HTTP/1.1 on one port.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http_body_util::{BodyExt, Limited};
use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::core::Core;
use crate::service;

/// Largest body of a request.
const BODY_MAX_BYTES: usize = 64 << 20;

/// A request, with all of its body.
#[derive(Debug)]
pub struct Request {
    /// `POST`.
    pub method: String,
    /// As it was sent, without the query.
    pub path: String,
    /// As it was sent, without the question mark.
    pub query: String,
    headers: hyper::HeaderMap,
    /// The body.
    pub body: Bytes,
}

impl Request {
    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// A GET without a body.
    #[cfg(test)]
    pub fn get(path: &str, query: &str, headers: &[(&'static str, &'static str)]) -> Self {
        let value = hyper::header::HeaderValue::from_static;
        let named = |(name, text): &(&'static str, &'static str)| {
            (hyper::header::HeaderName::from_static(name), value(text))
        };
        Self {
            method: "GET".into(),
            path: path.into(),
            query: query.into(),
            headers: headers.iter().map(named).collect(),
            body: Bytes::new(),
        }
    }

    /// A parameter of the query.
    pub fn query(&self, name: &str) -> Option<String> {
        let mut pairs = form_urlencoded::parse(self.query.as_bytes());
        pairs.find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
    }
}

/// An answer.
#[derive(Debug, Default)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Headers.
    pub headers: Vec<(&'static str, String)>,
    /// The body.
    pub body: Vec<u8>,
}

impl Answer {
    /// With a body of this type.
    pub fn new(status: u16, content_type: &str, body: impl Into<Vec<u8>>) -> Self {
        Self { status, headers: vec![("Content-Type", content_type.to_owned())], body: body.into() }
    }

    /// With one header more.
    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }
}

/// What happens to a connection.
#[derive(Debug)]
pub enum Outcome {
    /// It gets its answer.
    Answer(Answer),
    /// It gets half of it, and is closed.
    Half(Answer),
    /// It is closed.
    Close,
    /// It waits so many milliseconds, and is closed.
    Hang(u64),
}

/// A body that can break off.
struct Parts {
    parts: VecDeque<io::Result<Bytes>>,
    left: u64,
}

impl Body for Parts {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        Poll::Ready(self.parts.pop_front().map(|part| {
            if let Ok(bytes) = &part {
                self.left = self.left.saturating_sub(bytes.len() as u64);
            }
            part.map(Frame::data)
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.parts.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

fn respond(answer: Answer, half: bool) -> io::Result<hyper::Response<Parts>> {
    let mut builder = hyper::Response::builder().status(answer.status);
    for (name, value) in &answer.headers {
        builder = builder.header(*name, value);
    }
    let body = Bytes::from(answer.body);
    let left = body.len() as u64;
    let parts = if half {
        let cut = body.slice(..body.len() / 2);
        VecDeque::from([Ok(cut), Err(io::Error::other("cut short on request"))])
    } else if body.is_empty() {
        VecDeque::new()
    } else {
        VecDeque::from([Ok(body)])
    };
    builder.body(Parts { parts, left }).map_err(io::Error::other)
}

async fn serve(core: Arc<Core>, request: hyper::Request<Incoming>) -> io::Result<hyper::Response<Parts>> {
    let (head, body) = request.into_parts();
    let body = Limited::new(body, BODY_MAX_BYTES).collect().await.map_err(io::Error::other)?.to_bytes();
    let request = Request {
        method: head.method.to_string(),
        path: head.uri.path().to_owned(),
        query: head.uri.query().unwrap_or_default().to_owned(),
        headers: head.headers,
        body,
    };
    let outcome = tokio::task::spawn_blocking(move || service::handle(&core, &request)).await;
    match outcome.map_err(io::Error::other)? {
        Outcome::Answer(answer) => respond(answer, false),
        Outcome::Half(answer) => respond(answer, true),
        Outcome::Close => Err(io::Error::other("closed on request")),
        Outcome::Hang(ms) => {
            tokio::time::sleep(Duration::from_millis(ms)).await;
            Err(io::Error::other("hung on request"))
        }
    }
}

/// Serves until `stop` changes.
pub async fn run(
    core: Arc<Core>,
    listener: TcpListener,
    mut stop: watch::Receiver<bool>,
) -> Result<(), Infallible> {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stop.changed() => return Ok(()),
        };
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        let _ = stream.set_nodelay(true);
        let (core, mut stop) = (core.clone(), stop.clone());
        tokio::spawn(async move {
            let service = service_fn(move |request| serve(core.clone(), request));
            let connection =
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            tokio::select! {
                _ = connection => {}
                _ = stop.changed() => {}
            }
        });
    }
}
