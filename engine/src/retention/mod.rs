//! Which recovery points a policy keeps, and why: a pure function of policy, points and time. It deletes nothing.
//!
//! Each rule stands for itself, and a point stays if any rule keeps it. Rules look at the points of one name, from the newest to the oldest:
//! - `last N` keeps the N newest;
//! - `hourly` to `yearly N` keep the newest point of each of the N latest periods *that have a point*: a week without backups costs no place;
//! - `within` keeps what is at most so much older than the newest of the name. So nothing goes because backups have stopped;
//! - `tag` keeps every point that has it;
//! - the newest of each name always stays.
//!
//! Points of the future (a clock that went wrong, `--time`) stay, and no rule counts them: they take no other point's place.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use jiff::tz::TimeZone;
use jiff::{Span, Timestamp, ZonedDateTime};

use crate::error::{Error, Result};
use crate::id::PointId;

#[cfg(test)]
mod tests;

/// What is kept of each name. Rules that are 0, `None` or empty are not there.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    /// The newest points.
    pub last: u32,
    /// The newest point of each hour.
    pub hourly: u32,
    /// Of each day.
    pub daily: u32,
    /// Of each ISO week.
    pub weekly: u32,
    /// Of each month.
    pub monthly: u32,
    /// Of each year.
    pub yearly: u32,
    /// What is at most so much older than the newest.
    pub within: Option<Within>,
    /// What has one of these tags.
    pub tags: Vec<TagRule>,
}

impl Policy {
    /// True if no rule is there.
    pub fn is_empty(&self) -> bool {
        Period::ALL.iter().all(|period| self.count(*period) == 0)
            && self.last == 0
            && self.within.is_none()
            && self.tags.is_empty()
    }

    fn count(&self, period: Period) -> u32 {
        match period {
            Period::Hour => self.hourly,
            Period::Day => self.daily,
            Period::Week => self.weekly,
            Period::Month => self.monthly,
            Period::Year => self.yearly,
        }
    }
}

/// A length of time on the calendar: `14d`, `1y 6mo`, `36h`.
#[derive(Clone, Debug)]
pub struct Within(Span);

impl Within {
    /// Reads one. Units are `y`, `mo`, `w`, `d`, `h`, `m` (minutes) and `s`.
    pub fn parse(text: &str) -> Result<Within> {
        let bad = |why: &dyn fmt::Display| Error::Invalid {
            what: format!("{text:?} is not a length of time like 14d, 8w, 6mo or 1y6mo: {why}"),
        };
        let span: Span = text.trim().parse().map_err(|e| bad(&e))?;
        if span.signum() <= 0 {
            return Err(bad(&"it has to be more than nothing"));
        }
        Ok(Within(span))
    }
}

impl fmt::Display for Within {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#}", self.0)
    }
}

/// A tag that keeps a point: `key` with this value, or with any.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TagRule {
    /// Its key.
    pub key: String,
    /// Its value.
    pub value: Option<String>,
}

/// What the policy looks at of a recovery point.
#[derive(Clone, Debug)]
pub struct Point {
    /// Its id.
    pub id: PointId,
    /// The machine.
    pub name: String,
    /// The time its contents stand for; `None` if that cannot be read.
    pub time: Option<Timestamp>,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
}

/// A stretch of the calendar.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Period {
    /// On the clock. Where clocks are put back, the hour that comes twice is two.
    Hour,
    /// From midnight.
    Day,
    /// ISO 8601: from Monday; the first of a year has its first Thursday.
    Week,
    /// Of the calendar.
    Month,
    /// Of the calendar.
    Year,
}

impl Period {
    /// From the shortest to the longest.
    pub const ALL: [Period; 5] = [Period::Hour, Period::Day, Period::Week, Period::Month, Period::Year];

    fn rule(self) -> &'static str {
        match self {
            Period::Hour => "hourly",
            Period::Day => "daily",
            Period::Week => "weekly",
            Period::Month => "monthly",
            Period::Year => "yearly",
        }
    }

    /// What people call the one that holds `time`: `2026-W47`.
    fn label(self, time: &ZonedDateTime) -> String {
        let date = time.date();
        let (year, month) = (date.year(), date.month());
        match self {
            Period::Hour => format!("{date} {:02}:00", time.hour()),
            Period::Day => date.to_string(),
            Period::Week => {
                let week = date.iso_week_date();
                format!("{:04}-W{:02}", week.year(), week.week())
            }
            Period::Month => format!("{year:04}-{month:02}"),
            Period::Year => format!("{year:04}"),
        }
    }
}

/// Why a point stays.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Reason {
    /// Nothing newer is there.
    Newest,
    /// It is one of the last so many.
    Last(u32),
    /// It is the newest of this period.
    NewestIn(Period, String),
    /// It is recent enough.
    Within(String),
    /// It has this tag.
    Tag(String, String),
    /// Its time is yet to come.
    Future,
    /// Its time cannot be read.
    Timeless,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Newest => f.write_str("newest of its name"),
            Reason::Last(count) => write!(f, "last {count}"),
            Reason::NewestIn(period, label) => write!(f, "{} {label}", period.rule()),
            Reason::Within(span) => write!(f, "within {span}"),
            Reason::Tag(key, value) => write!(f, "tag {key}={value}"),
            Reason::Future => f.write_str("in the future"),
            Reason::Timeless => f.write_str("its time cannot be read"),
        }
    }
}

/// Says of each point why it stays; those without a reason go. The order of `points` does not matter.
pub fn decide(
    policy: &Policy,
    points: &[Point],
    now: Timestamp,
    zone: &TimeZone,
) -> Result<BTreeMap<PointId, Vec<Reason>>> {
    if policy.is_empty() {
        return Err(Error::Invalid {
            what: "a policy that keeps nothing: give at least one --keep-… that is not 0".into(),
        });
    }
    let mut names: BTreeMap<&str, Vec<&Point>> = BTreeMap::new();
    for point in points {
        names.entry(&point.name).or_default().push(point);
    }
    let mut reasons = BTreeMap::new();
    for of_name in names.into_values() {
        decide_name(policy, of_name, now, zone, &mut reasons);
    }
    Ok(reasons)
}

/// What has been kept so far for one kind of period.
struct Kept {
    period: Period,
    left: u32,
    /// Label, and offset from UTC where one label may stand twice.
    last: Option<(String, i32)>,
}

impl Kept {
    /// The label of the period that `time` is the newest of, if that is to be kept.
    fn newest_of(&mut self, time: &ZonedDateTime) -> Option<String> {
        let offset = if self.period == Period::Hour { time.offset().seconds() } else { 0 };
        let period = (self.period.label(time), offset);
        if self.left == 0 || self.last.as_ref() == Some(&period) {
            return None;
        }
        self.left -= 1;
        Some(self.last.insert(period).0.clone())
    }
}

fn decide_name(
    policy: &Policy,
    points: Vec<&Point>,
    now: Timestamp,
    zone: &TimeZone,
    reasons: &mut BTreeMap<PointId, Vec<Reason>>,
) {
    let mut counted: BTreeSet<(Timestamp, PointId)> = BTreeSet::new();
    for point in &points {
        let own = reasons.entry(point.id).or_default();
        match point.time {
            Some(time) if time <= now => {
                counted.insert((time, point.id));
            }
            Some(_) => own.push(Reason::Future),
            None => own.push(Reason::Timeless),
        }
    }
    let newest = counted.last().map(|(time, _)| time.to_zoned_datetime(zone.clone()));
    let cutoff = policy.within.as_ref().zip(newest).map(|(within, newest)| {
        let cutoff = newest.checked_sub(within.0).map_or(Timestamp::MIN, |time| time.timestamp());
        (cutoff, within.to_string())
    });
    let mut kept = Period::ALL.map(|period| Kept { period, left: policy.count(period), last: None });
    for (place, (time, id)) in counted.iter().rev().enumerate() {
        let own = reasons.entry(*id).or_default();
        if place == 0 {
            own.push(Reason::Newest);
        }
        if place < policy.last as usize {
            own.push(Reason::Last(policy.last));
        }
        let zoned = time.to_zoned_datetime(zone.clone());
        for rule in &mut kept {
            own.extend(rule.newest_of(&zoned).map(|label| Reason::NewestIn(rule.period, label)));
        }
        if let Some((cutoff, span)) = &cutoff
            && time >= cutoff
        {
            own.push(Reason::Within(span.clone()));
        }
    }
    for point in points {
        let matching = point.tags.iter().filter(|(key, value)| {
            let wanted =
                |rule: &TagRule| rule.key == **key && rule.value.as_ref().is_none_or(|v| v == *value);
            policy.tags.iter().any(wanted)
        });
        let found = matching.map(|(key, value)| Reason::Tag(key.clone(), value.clone()));
        reasons.entry(point.id).or_default().extend(found);
    }
}
