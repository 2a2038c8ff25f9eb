//! What requests cost.

use super::Requests;

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thousand_of_each() {
        let requests = Requests { get: 1000, put: 1000, list: 1000, delete: 1000, retried: 7 };
        assert!((requests.usd() - 0.0104).abs() < 1e-9);
    }
}
