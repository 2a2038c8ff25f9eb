//! What requests cost.

use super::Requests;
use super::custody::ThawSpeed;

/// USD per 1,000 PUT, COPY, POST and LIST requests. S3 Standard, us-east-1, <https://aws.amazon.com/s3/pricing/>, read 2026-08. Google Cloud Storage (class A) and Azure Blob
/// (hot, locally redundant) are within a tenth of it.
pub const PUT_USD_PER_1000: f64 = 0.005;
/// USD per 1,000 GET and HEAD requests, ibid.
pub const GET_USD_PER_1000: f64 = 0.0004;

impl Requests {
    /// What an object store bills for them; removing costs nothing. Storage, transfer, retrieval from cold classes and KMS come on top.
    pub fn usd(&self) -> f64 {
        ((self.put + self.list) as f64 * PUT_USD_PER_1000 + self.get as f64 * GET_USD_PER_1000) / 1000.0
    }
}

/// USD per GB and month of S3 Standard, ibid.: what a thawed copy costs.
const COPY_USD_PER_GB_MONTH: f64 = 0.023;
const GB: f64 = 1e9;

/// What thawing takes.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct ThawOffer {
    /// USD per 1,000 objects.
    pub usd_per_1000: f64,
    /// USD per GB.
    pub usd_per_gb: f64,
    /// How long it usually takes.
    pub takes: &'static str,
}

impl ThawOffer {
    /// What S3 offers for objects of a class; `None` where there is no such speed, or the class needs no thawing. us-east-1,
    /// <https://aws.amazon.com/s3/pricing/> and <https://docs.aws.amazon.com/AmazonS3/latest/userguide/restoring-objects-retrieval-options.html>, read 2026-08.
    pub fn of(class: &str, speed: ThawSpeed) -> Option<Self> {
        let offer = |usd_per_1000, usd_per_gb, takes| Some(Self { usd_per_1000, usd_per_gb, takes });
        match (class, speed) {
            ("GLACIER", ThawSpeed::Bulk) => offer(0.0, 0.0, "5 to 12 hours"),
            ("GLACIER", ThawSpeed::Standard) => offer(0.05, 0.01, "3 to 5 hours"),
            ("GLACIER", ThawSpeed::Expedited) => offer(10.0, 0.03, "1 to 5 minutes"),
            ("DEEP_ARCHIVE", ThawSpeed::Bulk) => offer(0.025, 0.0025, "up to 48 hours"),
            ("DEEP_ARCHIVE", ThawSpeed::Standard) => offer(0.10, 0.02, "up to 12 hours"),
            ("INTELLIGENT_TIERING/ARCHIVE_ACCESS", ThawSpeed::Bulk) => offer(0.0, 0.0, "5 to 12 hours"),
            ("INTELLIGENT_TIERING/ARCHIVE_ACCESS", ThawSpeed::Standard) => offer(0.0, 0.0, "3 to 5 hours"),
            ("INTELLIGENT_TIERING/ARCHIVE_ACCESS", ThawSpeed::Expedited) => {
                offer(10.0, 0.03, "1 to 5 minutes")
            }
            ("INTELLIGENT_TIERING/DEEP_ARCHIVE_ACCESS", ThawSpeed::Bulk) => offer(0.0, 0.0, "up to 48 hours"),
            ("INTELLIGENT_TIERING/DEEP_ARCHIVE_ACCESS", ThawSpeed::Standard) => {
                offer(0.0, 0.0, "up to 12 hours")
            }
            _ => None,
        }
    }

    /// What it costs for so many objects and bytes, with a copy that stays for `days`.
    pub fn usd(&self, objects: u64, bytes: u64, days: u32) -> f64 {
        let gb = bytes as f64 / GB;
        let copy = gb * COPY_USD_PER_GB_MONTH * f64::from(days) / 30.0;
        objects as f64 * self.usd_per_1000 / 1000.0 + gb * self.usd_per_gb + copy
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thousand_of_each() {
        let requests = Requests { get: 1000, put: 1000, list: 1000, delete: 1000, retried: 7 };
        assert!((requests.usd() - 0.0104).abs() < 1e-9);
    }

    #[test]
    fn thawing_a_terabyte() {
        let usd = |class, speed| ThawOffer::of(class, speed).map(|o| o.usd(30_000, 1_000_000_000_000, 0));
        let near =
            |usd: Option<f64>, due: f64| assert!(usd.is_some_and(|usd| (usd - due).abs() < 1e-6), "{usd:?}");
        near(usd("GLACIER", ThawSpeed::Bulk), 0.0);
        near(usd("GLACIER", ThawSpeed::Standard), 11.5);
        near(usd("GLACIER", ThawSpeed::Expedited), 330.0);
        near(usd("DEEP_ARCHIVE", ThawSpeed::Standard), 23.0);
        assert_eq!(usd("DEEP_ARCHIVE", ThawSpeed::Expedited), None);
        assert_eq!(ThawOffer::of("STANDARD", ThawSpeed::Bulk), None);
        let copy = ThawOffer::of("GLACIER", ThawSpeed::Bulk).map(|offer| offer.usd(1, 1_000_000_000, 30));
        near(copy, 0.023);
    }
}
