//! Ways to write a volume, with what they take: through a volume attached to the proxy, or block by block through the EBS direct APIs. Prices are those of
//! us-east-1.

use super::base::Difference;
use crate::aws::attach;
use crate::aws::direct::BLOCK_BYTES;
use crate::aws::limiter::Rates;
use crate::aws::prices;
use crate::ec2backup::way::{Estimate, Place, Way};

/// Making, attaching, detaching and deleting a volume.
const ATTACH_S: f64 = 45.0;
/// A snapshot of an attached volume, before its first byte and for each MiB: nobody but AWS knows.
const SNAPSHOT_S: f64 = 60.0;
const SNAPSHOT_MIB_S: f64 = 100.0;
/// As fast as one proxy sends blocks.
const DIRECT_MIB_S: f64 = 400.0;
const MIB: f64 = 1_048_576.0;

/// Putting so many blocks.
pub fn direct(what: Difference, rates: Rates, place: &Place) -> Estimate {
    let bytes = what.blocks * BLOCK_BYTES;
    let by_rate = if rates.put == 0 { 0.0 } else { what.blocks as f64 / f64::from(rates.put) };
    let seconds = by_rate.max(bytes as f64 / (DIRECT_MIB_S * MIB));
    // What comes into AWS from outside is free; what comes from another region is not.
    let traffic = match &place.traffic {
        Some((usd, _)) if *usd < prices::INTERNET_GIB => usd * bytes as f64 / (1u64 << 30) as f64,
        _ => 0.0,
    };
    let usd = what.blocks as f64 * prices::PUT_BLOCK + traffic;
    Estimate { way: Way::Direct, bytes, requests: what.blocks + 2, seconds, usd }
}

/// Writing so much to a volume of `size_gib` with `throughput` MiB/s, and taking a snapshot of it if one is needed.
pub fn attached(what: Difference, size_gib: u64, throughput: u32, snapshot: bool) -> Estimate {
    let mut seconds = ATTACH_S + what.bytes as f64 / (f64::from(throughput) * MIB);
    if snapshot {
        seconds += SNAPSHOT_S + what.bytes as f64 / (SNAPSHOT_MIB_S * MIB);
    }
    let usd = prices::gp3(size_gib, throughput, attach::iops_for(throughput), seconds);
    Estimate { way: Way::Attach, bytes: what.bytes, requests: 0, seconds, usd }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ec2backup::way::{Wish, decide};

    #[test]
    fn little_is_put_by_calls_and_much_is_written_to_a_volume() {
        let here = Place { no_attach: None, traffic: None };
        let rates = Rates { get: 1000, put: 1000, list: 50 };
        let way = |bytes: u64| {
            let what = Difference { bytes, blocks: bytes.div_ceil(BLOCK_BYTES) };
            let direct = direct(what, rates, &here);
            let attach = attached(what, 1024, 125, false);
            decide(Wish::Auto, "--write", &here, direct, attach).unwrap().estimate.way
        };
        assert_eq!(way(100 << 20), Way::Direct);
        assert_eq!(way(1 << 40), Way::Attach);
        let tib = Difference { bytes: 1 << 40, blocks: 1 << 21 };
        let estimate = direct(tib, rates, &here);
        assert!((estimate.usd - 12.58).abs() < 0.01, "{estimate:?}");
    }
}
