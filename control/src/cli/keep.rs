//! `--keep-…`: what a policy keeps, for recovery points and for sets of snapshots.

use jiff::Timestamp;
use jiff::tz::{Offset, TimeZone};
use penstock_engine::retention::{Policy, TagRule, Within};

/// The options.
#[derive(clap::Args, Debug)]
pub struct KeepArgs {
    /// Keep the N newest
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    keep_last: u32,

    /// Keep the newest of each of the last N hours that have one
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    keep_hourly: u32,

    /// The same for days
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    keep_daily: u32,

    /// The same for weeks, which begin on Monday
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    keep_weekly: u32,

    /// The same for months
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    keep_monthly: u32,

    /// The same for years
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    keep_yearly: u32,

    /// Keep what is at most so much older than the newest: 14d, 8w, 6mo, 1y6mo, 36h
    #[arg(long, value_name = "DURATION", value_parser = parse_within)]
    keep_within: Option<Within>,

    /// Keep what has this tag: KEY=VALUE, or KEY with any value
    #[arg(long = "keep-tag", value_name = "TAG", value_parser = parse_tag_rule)]
    keep_tags: Vec<TagRule>,

    /// Where days begin, as Europe/Berlin or UTC [default: this machine's]
    #[arg(long, value_name = "ZONE", value_parser = parse_zone)]
    time_zone: Option<TimeZone>,
}

impl KeepArgs {
    /// What they say; empty if none was given.
    pub fn policy(&self) -> Policy {
        Policy {
            last: self.keep_last,
            hourly: self.keep_hourly,
            daily: self.keep_daily,
            weekly: self.keep_weekly,
            monthly: self.keep_monthly,
            yearly: self.keep_yearly,
            within: self.keep_within.clone(),
            tags: self.keep_tags.clone(),
        }
    }

    /// Where days begin. Says so if that is not known.
    pub fn zone(&self) -> TimeZone {
        let zone = self.time_zone.clone().unwrap_or_else(TimeZone::system);
        if zone.is_unknown() && !self.policy().is_empty() {
            tracing::warn!("{}", no_zone_text(std::env::var("TZ").ok().as_deref()));
        }
        zone
    }
}

fn no_zone_text(tz: Option<&str>) -> String {
    let why = match tz {
        Some(tz) => format!("TZ={tz:?} names none that it knows"),
        None => "neither TZ nor /etc/localtime tells".into(),
    };
    format!(
        "the time zone of this machine is not known ({why}): days begin at midnight UTC. Name it by --time-zone"
    )
}

fn parse_within(text: &str) -> Result<Within, String> {
    Within::parse(text).map_err(|e| e.to_string())
}

fn parse_tag_rule(text: &str) -> Result<TagRule, String> {
    let (key, value) = match text.split_once('=') {
        Some((key, value)) => (key, Some(value.to_owned())),
        None => (text, None),
    };
    match key {
        "" => Err(format!("{text:?}: write a tag as KEY=VALUE, or KEY")),
        _ => Ok(TagRule { key: key.to_owned(), value }),
    }
}

fn parse_zone(text: &str) -> Result<TimeZone, String> {
    TimeZone::get(text).map_err(|e| format!("{text:?} is no time zone known to this machine: {e}"))
}

/// A zone without a name is one that could not be found out: UTC is taken.
pub fn zone_name(zone: &TimeZone) -> &str {
    zone.iana_name().unwrap_or(if zone.is_unknown() { "UTC" } else { "local" })
}

/// RFC 3339 to whole seconds, in the zone that the reasons speak of.
pub fn local_time(text: &str, zone: &TimeZone) -> String {
    match text.parse::<Timestamp>() {
        Ok(time) => {
            let zoned = time.to_zoned_datetime(zone.clone());
            let format = if zoned.offset() == Offset::UTC { "%FT%TZ" } else { "%FT%T%:z" };
            zoned.strftime(format).to_string()
        }
        Err(_) => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_zones_and_times() {
        assert_eq!(parse_tag_rule("pin"), Ok(TagRule { key: "pin".into(), value: None }));
        assert_eq!(parse_tag_rule("a=b=c"), Ok(TagRule { key: "a".into(), value: Some("b=c".into()) }));
        assert!(parse_tag_rule("").is_err() && parse_tag_rule("=x").is_err());
        assert!(parse_zone("UTC").is_ok() && parse_zone("Mars/Olympus").is_err());
        assert_eq!(local_time("2026-11-20T23:30:00.5Z", &TimeZone::UTC), "2026-11-20T23:30:00Z");
        let east = TimeZone::fixed(jiff::tz::offset(1));
        assert_eq!(local_time("2026-11-20T23:30:00.5Z", &east), "2026-11-21T00:30:00+01:00");
        assert_eq!(local_time("yesterday", &east), "yesterday");
        assert!(no_zone_text(Some("Europe/Berlinn")).contains("Europe/Berlinn"));
        assert!(no_zone_text(None).contains("/etc/localtime"));
    }
}
