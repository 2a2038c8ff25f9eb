//! Ways to read a snapshot, with what they take: attached as a volume, or block by block through the EBS direct APIs. Prices are those of us-east-1.

use serde::Serialize;

use crate::aws::direct::BLOCK_BYTES;
use crate::aws::limiter::Rates;

/// 1000 GetSnapshotBlock.
const GET_USD: f64 = 0.003 / 1000.0;
/// 1000 ListSnapshotBlocks or ListChangedBlocks.
const LIST_USD: f64 = 0.0006 / 1000.0;
/// Blocks in an answer of a listing.
const LIST_BLOCKS: u64 = 10_000;
/// A gp3 volume, a GiB and month.
const GP3_GIB_USD: f64 = 0.08;
/// gp3 throughput beyond 125 MiB/s, a MiB/s and month.
const GP3_THROUGHPUT_USD: f64 = 0.04;
const MONTH_S: f64 = 730.0 * 3600.0;
/// AWS charges volumes for a minute at least.
const CHARGED_MIN_S: f64 = 60.0;
/// Making, attaching, detaching and deleting a volume.
const ATTACH_S: f64 = 45.0;
/// Blocks of a volume made of a snapshot are fetched from behind it when they are first read: about so many MiB/s, whatever the volume's type.
const HYDRATE_MIB_S: f64 = 60.0;
/// What an hour of waiting costs: a proxy of moderate size.
const HOUR_USD: f64 = 0.10;
/// As fast as one proxy takes answers.
const DIRECT_MIB_S: f64 = 500.0;
const MIB: f64 = 1_048_576.0;

/// How a volume is read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Way {
    /// A temporary volume, attached to the proxy.
    Attach,
    /// The EBS direct APIs.
    Direct,
}

impl Way {
    /// As in `--read`.
    pub fn name(self) -> &'static str {
        match self {
            Way::Attach => "attach",
            Way::Direct => "direct",
        }
    }
}

/// What the user asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Wish {
    /// What is cheaper.
    #[default]
    Auto,
    /// This one.
    Only(Way),
}

/// What a way takes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Estimate {
    /// Which.
    pub way: Way,
    /// Bytes read.
    pub bytes: u64,
    /// Calls that cost something.
    pub requests: u64,
    /// Seconds.
    pub seconds: f64,
    /// For requests and volumes, without the time of the proxy.
    pub usd: f64,
}

impl Estimate {
    /// Reading so many bytes by calls.
    pub fn direct(bytes: u64, rates: Rates) -> Self {
        let gets = bytes.div_ceil(BLOCK_BYTES);
        let lists = gets.div_ceil(LIST_BLOCKS) * 2;
        let by_rate = if rates.get == 0 { 0.0 } else { gets as f64 / f64::from(rates.get) };
        let seconds = by_rate.max(bytes as f64 / (DIRECT_MIB_S * MIB));
        let usd = gets as f64 * GET_USD + lists as f64 * LIST_USD;
        Self { way: Way::Direct, bytes, requests: gets + lists, seconds, usd }
    }

    /// Reading so many bytes of a volume of `size_gib` with `throughput` MiB/s.
    pub fn attach(bytes: u64, size_gib: u64, throughput: u32) -> Self {
        let rate = f64::from(throughput).min(HYDRATE_MIB_S);
        let seconds = ATTACH_S + bytes as f64 / (rate * MIB);
        let monthly =
            size_gib as f64 * GP3_GIB_USD + f64::from(throughput.saturating_sub(125)) * GP3_THROUGHPUT_USD;
        let lists = bytes.div_ceil(BLOCK_BYTES).div_ceil(LIST_BLOCKS);
        let usd = monthly * seconds.max(CHARGED_MIN_S) / MONTH_S + lists as f64 * LIST_USD;
        Self { way: Way::Attach, bytes, requests: lists, seconds, usd }
    }

    /// Money and time.
    fn weight(&self) -> f64 {
        self.usd + self.seconds * HOUR_USD / 3600.0
    }
}

/// What was decided.
#[derive(Clone, Debug, Serialize)]
pub struct Decision {
    /// The way that is taken.
    #[serde(flatten)]
    pub estimate: Estimate,
    /// Why.
    pub why: String,
}

/// Decides. `no_proxy` says why nothing can be attached here.
pub fn decide(
    wish: Wish,
    no_proxy: Option<&str>,
    direct: Estimate,
    attach: Estimate,
) -> Result<Decision, String> {
    let decision = |estimate, why: String| Ok(Decision { estimate, why });
    match (wish, no_proxy) {
        (Wish::Only(Way::Direct), _) => decision(direct, "asked for".into()),
        (Wish::Only(Way::Attach), None) => decision(attach, "asked for".into()),
        (Wish::Only(Way::Attach), Some(why)) => {
            Err(format!("nothing can be attached here: {why}. Use --read direct"))
        }
        (Wish::Auto, Some(why)) => decision(direct, format!("nothing can be attached here: {why}")),
        (Wish::Auto, None) => {
            let (chosen, other) =
                if direct.weight() <= attach.weight() { (direct, attach) } else { (attach, direct) };
            let why = format!(
                "{} takes about {:.0} s and {:.4} USD, {} {:.0} s and {:.4} USD",
                chosen.way.name(),
                chosen.seconds,
                chosen.usd,
                other.way.name(),
                other.seconds,
                other.usd
            );
            decision(chosen, why)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATES: Rates = Rates { get: 1000, list: 50 };

    #[test]
    fn prices_are_those_of_the_price_list() {
        let tib = 1 << 40;
        let direct = Estimate::direct(tib, RATES);
        assert!((direct.usd - 6.29).abs() < 0.01, "{direct:?}");
        assert!((direct.seconds - 2097.0).abs() < 1.0, "{direct:?}");
        let hour = Estimate { seconds: 3600.0, ..Estimate::attach(0, 1024, 125) };
        assert_eq!(hour.requests, 0);
        let attach = Estimate::attach(tib, 1024, 125);
        assert!((attach.usd / attach.seconds * 3600.0 - 0.112).abs() < 0.001, "{attach:?}");
    }

    #[test]
    fn a_little_is_read_by_calls_and_much_is_attached() {
        let way = |bytes, size_gib| {
            let direct = Estimate::direct(bytes, RATES);
            decide(Wish::Auto, None, direct, Estimate::attach(bytes, size_gib, 125)).unwrap().estimate.way
        };
        assert_eq!(way(100 << 20, 1024), Way::Direct);
        assert_eq!(way(1 << 40, 1024), Way::Attach);
        let direct = Estimate::direct(1 << 40, RATES);
        let attach = Estimate::attach(1 << 40, 1024, 125);
        let without = decide(Wish::Auto, Some("no EC2"), direct, attach).unwrap();
        assert!(without.estimate.way == Way::Direct && without.why.contains("no EC2"));
        assert!(decide(Wish::Only(Way::Attach), Some("no EC2"), direct, attach).is_err());
    }
}
