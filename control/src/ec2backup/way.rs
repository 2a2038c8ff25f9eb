//! Ways to read a snapshot, with what they take: attached as a volume, or block by block through the EBS direct APIs. Prices are those of us-east-1.

use serde::{Deserialize, Serialize};

use crate::aws::attach;
use crate::aws::clients::{Clients, Proxy};
use crate::aws::direct::BLOCK_BYTES;
use crate::aws::limiter::Rates;
use crate::aws::prices;

/// Blocks in an answer of a listing.
const LIST_BLOCKS: u64 = 10_000;
/// Making, attaching, detaching and deleting a volume.
const ATTACH_S: f64 = 45.0;
/// Blocks of a volume made of a snapshot are fetched from behind it when they are first read: about so many MiB/s, whatever the volume's type.
const HYDRATE_MIB_S: f64 = 60.0;
/// What an hour of waiting costs: a proxy of moderate size.
const HOUR_USD: f64 = 0.10;
/// As fast as one proxy takes answers.
const DIRECT_MIB_S: f64 = 500.0;
const MIB: f64 = 1_048_576.0;
const GIB: f64 = 1_073_741_824.0;

/// Where this program runs, seen from the volumes.
#[derive(Clone, Debug, PartialEq)]
pub struct Place {
    /// Why nothing can be attached here.
    pub no_attach: Option<String>,
    /// What a GiB costs on its way here, and what that way is.
    pub traffic: Option<(f64, &'static str)>,
}

impl Place {
    /// Of the instance that this program runs on, if it is one.
    pub fn of(aws: &Clients, proxy: Option<&Proxy>) -> Self {
        match proxy {
            None => Self {
                no_attach: Some("this is no EC2 instance".into()),
                traffic: Some((prices::INTERNET_GIB, "out of AWS")),
            },
            Some(proxy) if proxy.region != aws.region => Self {
                no_attach: Some(format!(
                    "this instance is in {}, the volume in {}",
                    proxy.region, aws.region
                )),
                traffic: Some((prices::BETWEEN_REGIONS_GIB, "from one region to another")),
            },
            Some(_) => Self { no_attach: None, traffic: None },
        }
    }

    /// What so many bytes cost on their way here.
    pub fn traffic_usd(&self, bytes: u64) -> f64 {
        self.traffic.map_or(0.0, |(usd, _)| usd * bytes as f64 / GIB)
    }
}

/// How a volume is read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
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
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// Which.
    pub way: Way,
    /// Bytes read.
    pub bytes: u64,
    /// Calls that cost something.
    pub requests: u64,
    /// Seconds.
    pub seconds: f64,
    /// For requests, volumes and traffic, without the time of the proxy.
    pub usd: f64,
}

impl Estimate {
    /// Reading so many bytes by calls.
    pub fn direct(bytes: u64, rates: Rates, place: &Place) -> Self {
        let gets = bytes.div_ceil(BLOCK_BYTES);
        let lists = gets.div_ceil(LIST_BLOCKS) * 2;
        let by_rate = if rates.get == 0 { 0.0 } else { gets as f64 / f64::from(rates.get) };
        let seconds = by_rate.max(bytes as f64 / (DIRECT_MIB_S * MIB));
        let usd =
            gets as f64 * prices::GET_BLOCK + lists as f64 * prices::LIST_BLOCKS + place.traffic_usd(bytes);
        Self { way: Way::Direct, bytes, requests: gets + lists, seconds, usd }
    }

    /// Reading so many bytes of a volume of `size_gib` with `throughput` MiB/s.
    pub fn attach(bytes: u64, size_gib: u64, throughput: u32) -> Self {
        let rate = f64::from(throughput).min(HYDRATE_MIB_S);
        let seconds = ATTACH_S + bytes as f64 / (rate * MIB);
        let lists = bytes.div_ceil(BLOCK_BYTES).div_ceil(LIST_BLOCKS);
        let usd = prices::gp3(size_gib, throughput, attach::iops_for(throughput), seconds)
            + lists as f64 * prices::LIST_BLOCKS;
        Self { way: Way::Attach, bytes, requests: lists, seconds, usd }
    }

    /// Money and time.
    fn weight(&self) -> f64 {
        self.usd + self.seconds * HOUR_USD / 3600.0
    }
}

/// What was decided.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Decision {
    /// The way that is taken.
    #[serde(flatten)]
    pub estimate: Estimate,
    /// Why.
    pub why: String,
}

/// Decides. `option` is what the wish was given by.
pub fn decide(
    wish: Wish,
    option: &str,
    place: &Place,
    direct: Estimate,
    attach: Estimate,
) -> Result<Decision, String> {
    let decision = |estimate, why: String| Ok(Decision { estimate, why });
    match (wish, &place.no_attach) {
        (Wish::Only(Way::Direct), _) => decision(direct, "asked for".into()),
        (Wish::Only(Way::Attach), None) => decision(attach, "asked for".into()),
        (Wish::Only(Way::Attach), Some(why)) => {
            Err(format!("nothing can be attached here: {why}. Use {option} direct"))
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

    const RATES: Rates = Rates { get: 1000, put: 1000, list: 50 };
    const HERE: Place = Place { no_attach: None, traffic: None };

    #[test]
    fn prices_are_those_of_the_price_list() {
        let tib = 1 << 40;
        let direct = Estimate::direct(tib, RATES, &HERE);
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
            let direct = Estimate::direct(bytes, RATES, &HERE);
            decide(Wish::Auto, "--read", &HERE, direct, Estimate::attach(bytes, size_gib, 125))
                .unwrap()
                .estimate
                .way
        };
        assert_eq!(way(100 << 20, 1024), Way::Direct);
        assert_eq!(way(1 << 40, 1024), Way::Attach);
        let direct = Estimate::direct(1 << 40, RATES, &HERE);
        let attach = Estimate::attach(1 << 40, 1024, 125);
        let outside =
            Place { no_attach: Some("no EC2".into()), traffic: Some((prices::INTERNET_GIB, "out of AWS")) };
        let without = decide(Wish::Auto, "--read", &outside, direct, attach).unwrap();
        assert!(without.estimate.way == Way::Direct && without.why.contains("no EC2"));
        assert!(decide(Wish::Only(Way::Attach), "--read", &outside, direct, attach).is_err());
        let far = Estimate::direct(1 << 40, RATES, &outside);
        assert!((far.usd - direct.usd - 0.09 * 1024.0).abs() < 0.01, "{far:?}");
    }
}
