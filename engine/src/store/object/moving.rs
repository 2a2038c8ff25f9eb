//! Bodies on their way: each piece is noted as a sign of life, and waits for its share of the line where there is a
//! limit.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use object_store::client::{HttpError, HttpErrorKind, HttpRequestBody};
use tokio::time::Sleep;

use super::http::Attempt;
use crate::store::throttle::Throttle;

/// What is handed to the connection at a time: small beside what a limited line passes in the time of a time limit.
const PIECE_BYTES: usize = 64 << 10;

/// Waits for a share of the line. While it does, the attempt is not silent but held.
struct Share {
    throttle: Option<Arc<Throttle>>,
    attempt: Arc<Attempt>,
    waiting: Option<Pin<Box<Sleep>>>,
}

impl Share {
    fn new(throttle: Option<Arc<Throttle>>, attempt: Arc<Attempt>) -> Self {
        Self { throttle, attempt, waiting: None }
    }

    /// Reserves for `bytes`; [`poll`](Self::poll) is ready when they may pass.
    fn reserve(&mut self, bytes: usize) {
        let wait = self.throttle.as_ref().map(|throttle| throttle.reserve(bytes)).unwrap_or_default();
        if !wait.is_zero() {
            self.attempt.hold(wait);
            self.waiting = Some(Box::pin(tokio::time::sleep(wait)));
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(waiting) = &mut self.waiting {
            std::task::ready!(waiting.as_mut().poll(cx));
            self.waiting = None;
        }
        Poll::Ready(())
    }
}

/// A request's body.
pub struct Upload {
    inner: HttpRequestBody,
    /// What came of the body and was not handed on yet.
    rest: Bytes,
    /// A piece that waits for its share.
    piece: Option<Bytes>,
    left_bytes: u64,
    share: Share,
}

impl Upload {
    /// Wraps the body of `attempt`.
    pub fn new(inner: HttpRequestBody, attempt: Arc<Attempt>, throttle: Option<Arc<Throttle>>) -> Self {
        let left_bytes = inner.content_length() as u64;
        attempt.begin_upload(left_bytes);
        Self { inner, rest: Bytes::new(), piece: None, left_bytes, share: Share::new(throttle, attempt) }
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = HttpError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, HttpError>>> {
        let this = &mut *self;
        if this.piece.is_none() {
            while this.rest.is_empty() {
                match std::task::ready!(Pin::new(&mut this.inner).poll_frame(cx)) {
                    Some(Ok(frame)) => this.rest = frame.into_data().unwrap_or_default(),
                    other => return Poll::Ready(other),
                }
            }
            let piece = this.rest.split_to(this.rest.len().min(PIECE_BYTES));
            this.share.reserve(piece.len());
            this.piece = Some(piece);
        }
        std::task::ready!(this.share.poll(cx));
        let Some(piece) = this.piece.take() else { return Poll::Ready(None) };
        this.left_bytes = this.left_bytes.saturating_sub(piece.len() as u64);
        this.share.attempt.sent(piece.len());
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.left_bytes == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left_bytes)
    }
}

/// An answer's body.
pub struct Download<B> {
    inner: B,
    /// What came and waits for its share.
    frame: Option<Frame<Bytes>>,
    share: Share,
}

impl<B> Download<B> {
    /// Wraps the body of the answer to `attempt`.
    pub fn new(inner: B, attempt: Arc<Attempt>, throttle: Option<Arc<Throttle>>) -> Self {
        Self { inner, frame: None, share: Share::new(throttle, attempt) }
    }
}

impl<B: Body<Data = Bytes, Error = reqwest::Error> + Unpin> Body for Download<B> {
    type Data = Bytes;
    type Error = HttpError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, HttpError>>> {
        let this = &mut *self;
        if this.frame.is_none() {
            match std::task::ready!(Pin::new(&mut this.inner).poll_frame(cx)) {
                Some(Ok(frame)) => {
                    let bytes = frame.data_ref().map_or(0, Bytes::len);
                    this.share.attempt.received(bytes);
                    this.share.reserve(bytes);
                    this.frame = Some(frame);
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(failed(error)))),
                None => return Poll::Ready(None),
            }
        }
        std::task::ready!(this.share.poll(cx));
        Poll::Ready(this.frame.take().map(Ok))
    }

    fn is_end_stream(&self) -> bool {
        self.frame.is_none() && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// The URL is left out: queries may hold signatures. Nothing here branches on the kind.
pub fn failed(error: reqwest::Error) -> HttpError {
    let kind = match () {
        () if error.is_timeout() => HttpErrorKind::Timeout,
        () if error.is_connect() => HttpErrorKind::Connect,
        () if error.is_decode() => HttpErrorKind::Decode,
        () => HttpErrorKind::Unknown,
    };
    HttpError::new(kind, error.without_url())
}
