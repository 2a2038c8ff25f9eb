//! The lab's time: the machine's, plus what tests have let pass.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// Milliseconds since 1970, UTC.
pub type Ms = i64;

/// Time that can be moved forward.
#[derive(Debug, Default)]
pub struct Clock {
    ahead_ms: AtomicI64,
}

impl Clock {
    /// Now.
    pub fn now_ms(&self) -> Ms {
        let real = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis());
        i64::try_from(real).unwrap_or(i64::MAX / 2) + self.ahead_ms.load(Ordering::SeqCst)
    }

    /// Lets time pass at once.
    pub fn advance(&self, by_ms: Ms) {
        self.ahead_ms.fetch_add(by_ms, Ordering::SeqCst);
    }
}

/// `2026-08-04T03:02:01.000Z`.
pub fn iso(at_ms: Ms) -> String {
    match jiff::Timestamp::from_millisecond(at_ms) {
        Ok(at) => format!("{at:.3}"),
        Err(_) => String::from("1970-01-01T00:00:00.000Z"),
    }
}

/// Seconds since 1970, as the REST JSON protocol writes times.
#[allow(clippy::cast_precision_loss)] // exact up to the year 287396
pub fn epoch_seconds(at_ms: Ms) -> f64 {
    at_ms as f64 / 1000.0
}

/// `Tue, 04 Aug 2026 03:02:01 GMT`, as HTTP headers have it.
pub fn http_date(at_ms: Ms) -> String {
    let at = jiff::Timestamp::from_millisecond(at_ms).unwrap_or_default();
    at.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string()
}

/// `20260804T030201Z`, as signatures have it.
pub fn of_signature(text: &str) -> Option<Ms> {
    text.parse::<jiff::Timestamp>().ok().map(jiff::Timestamp::as_millisecond)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_headers() {
        assert_eq!(http_date(1_785_812_521_000), "Tue, 04 Aug 2026 03:02:01 GMT");
        assert_eq!(of_signature("20260804T030201Z"), Some(1_785_812_521_000));
        assert_eq!(of_signature("2026"), None);
    }
}
