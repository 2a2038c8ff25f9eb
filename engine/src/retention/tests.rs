//! The policy against examples, against a naive model, and its laws.

use std::collections::BTreeMap;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use proptest::prelude::*;

use super::*;

fn id(n: u64) -> PointId {
    let mut bytes = [0; 16];
    bytes[8..].copy_from_slice(&n.to_be_bytes());
    PointId::new(bytes)
}

fn point(n: u64, name: &str, time: &str) -> Point {
    Point { id: id(n), name: name.into(), time: time.parse().ok(), tags: BTreeMap::new() }
}

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn texts(policy: &Policy, points: &[Point], now: &str, zone: &TimeZone) -> Vec<Vec<String>> {
    let decided = decide(policy, points, at(now), zone).unwrap();
    points.iter().map(|point| decided[&point.id].iter().map(ToString::to_string).collect()).collect()
}

fn berlin() -> TimeZone {
    TimeZone::posix("CET-1CEST,M3.5.0,M10.5.0/3").unwrap()
}

#[test]
fn all_reasons_are_told() {
    let mut points = vec![
        point(1, "web", "2025-12-31T12:00:00Z"),
        point(2, "web", "2026-11-15T12:00:00Z"),
        point(3, "web", "2026-11-19T12:00:00Z"),
        point(4, "web", "2026-11-20T01:00:00Z"),
        point(5, "web", "2026-11-20T13:45:00Z"),
        point(6, "db", "2020-01-01T00:00:00Z"),
    ];
    points[1].tags.insert("keep".into(), "always".into());
    let policy = Policy {
        last: 1,
        hourly: 1,
        daily: 2,
        weekly: 2,
        monthly: 1,
        yearly: 2,
        within: Some(Within::parse("14 days").unwrap()),
        tags: vec![TagRule { key: "keep".into(), value: None }],
    };
    let texts = texts(&policy, &points, "2026-11-24T00:00:00Z", &TimeZone::UTC);
    assert_eq!(
        texts[4],
        [
            "newest of its name",
            "last 1",
            "hourly 2026-11-20 13:00",
            "daily 2026-11-20",
            "weekly 2026-W47",
            "monthly 2026-11",
            "yearly 2026",
            "within 14d"
        ]
    );
    assert_eq!(texts[3], ["within 14d"]);
    assert_eq!(texts[2], ["daily 2026-11-19", "within 14d"]);
    assert_eq!(texts[1], ["weekly 2026-W46", "within 14d", "tag keep=always"]);
    assert_eq!(texts[0], ["yearly 2025"]);
    assert_eq!(texts[5][0], "newest of its name");
}

#[test]
fn an_empty_policy_is_refused() {
    let points = [point(1, "web", "2026-01-01T00:00:00Z")];
    let error = decide(&Policy::default(), &points, at("2026-01-02T00:00:00Z"), &TimeZone::UTC);
    assert!(matches!(error, Err(Error::Invalid { .. })));
}

#[test]
fn points_of_the_future_take_nobodys_place() {
    let points = [
        point(1, "web", "2026-01-01T00:00:00Z"),
        point(2, "web", "2026-01-02T00:00:00Z"),
        point(3, "web", "2036-01-01T00:00:00Z"),
        point(4, "web", "not a time"),
    ];
    let policy = Policy { last: 1, within: Some(Within::parse("1h").unwrap()), ..Policy::default() };
    let texts = texts(&policy, &points, "2026-01-03T00:00:00Z", &TimeZone::UTC);
    assert!(texts[0].is_empty());
    assert_eq!(texts[1], ["newest of its name", "last 1", "within 1h"]);
    assert_eq!(texts[2], ["in the future"]);
    assert_eq!(texts[3], ["its time cannot be read"]);
}

#[test]
fn days_begin_at_local_midnight_and_an_hour_that_comes_twice_is_two() {
    let late = [point(1, "web", "2026-11-20T22:30:00Z"), point(2, "web", "2026-11-20T23:30:00Z")];
    let policy = Policy { daily: 2, ..Policy::default() };
    let now = "2026-11-24T00:00:00Z";
    assert!(texts(&policy, &late, now, &TimeZone::UTC)[0].is_empty());
    assert_eq!(texts(&policy, &late, now, &berlin())[0], ["daily 2026-11-20"]);
    assert_eq!(texts(&policy, &late, now, &berlin())[1][1], "daily 2026-11-21");

    let twice = [point(1, "web", "2026-10-25T00:30:00Z"), point(2, "web", "2026-10-25T01:30:00Z")];
    let policy = Policy { hourly: 2, ..Policy::default() };
    let texts = texts(&policy, &twice, now, &berlin());
    assert_eq!((&*texts[0][0], &*texts[1][1]), ("hourly 2026-10-25 02:00", "hourly 2026-10-25 02:00"));
}

#[test]
fn weeks_are_those_of_iso_8601() {
    let points = [point(1, "web", "2027-01-03T12:00:00Z"), point(2, "web", "2027-01-04T12:00:00Z")];
    let policy = Policy { weekly: 5, ..Policy::default() };
    let texts = texts(&policy, &points, "2027-01-05T00:00:00Z", &TimeZone::UTC);
    assert_eq!((&*texts[0][0], &*texts[1][1]), ("weekly 2026-W53", "weekly 2027-W01"));
}

#[test]
fn within_counts_from_the_newest_on_the_calendar() {
    let points = [
        point(1, "web", "2026-02-27T00:00:00Z"),
        point(2, "web", "2026-02-28T00:00:00Z"),
        point(3, "web", "2026-03-31T00:00:00Z"),
    ];
    let policy = Policy { within: Some(Within::parse("1mo").unwrap()), ..Policy::default() };
    // years later: backups have stopped, and still nothing goes that was there the day they did
    let texts = texts(&policy, &points, "2030-01-01T00:00:00Z", &TimeZone::UTC);
    assert!(texts[0].is_empty() && !texts[1].is_empty(), "{texts:?}");
    for text in ["", "14", "0d", "-3d", "3 fortnights", "1e9y", "99999999999999999999d"] {
        assert!(Within::parse(text).is_err(), "{text}");
    }
    assert_eq!(Within::parse("1y6mo").unwrap().to_string(), "1y 6mo");
}

/// As the rules read, one point and rule at a time, without order or state.
fn model(policy: &Policy, points: &[Point], now: Timestamp, zone: &TimeZone) -> BTreeMap<PointId, bool> {
    let counts = |p: &Point| p.time.is_some_and(|time| time <= now);
    let keeps = |p: &Point| {
        let of_name: Vec<&Point> = points.iter().filter(|q| q.name == p.name && counts(q)).collect();
        let tagged = policy
            .tags
            .iter()
            .any(|t| p.tags.get(&t.key).is_some_and(|v| t.value.as_ref().is_none_or(|w| w == v)));
        if !counts(p) || tagged {
            return true;
        }
        let newer: Vec<&&Point> = of_name.iter().filter(|q| (q.time, q.id) > (p.time, p.id)).collect();
        let period = |q: &Point, format: &str| {
            q.time.unwrap().to_zoned_datetime(zone.clone()).strftime(format).to_string()
        };
        let periodic = |format: &str, count: u32| {
            let own = period(p, format);
            let later: std::collections::BTreeSet<String> = newer.iter().map(|q| period(q, format)).collect();
            !later.contains(&own) && later.len() < count as usize
        };
        let newest = of_name.iter().filter_map(|q| q.time).max().unwrap().to_zoned_datetime(zone.clone());
        newer.len() < (policy.last as usize).max(1)
            || periodic("%F %H %z", policy.hourly)
            || periodic("%F", policy.daily)
            || periodic("%G-%V", policy.weekly)
            || periodic("%Y-%m", policy.monthly)
            || periodic("%Y", policy.yearly)
            || policy
                .within
                .as_ref()
                .is_some_and(|w| p.time.unwrap() >= newest.checked_sub(w.0).unwrap().timestamp())
    };
    points.iter().map(|p| (p.id, keeps(p))).collect()
}

fn kept(policy: &Policy, points: &[Point], now: Timestamp, zone: &TimeZone) -> BTreeMap<PointId, bool> {
    decide(policy, points, now, zone).unwrap().into_iter().map(|(id, why)| (id, !why.is_empty())).collect()
}

/// 2026-11-24T00:00:00Z.
const NOW: i64 = 1_795_478_400;

/// Points of two names over hours or years before and a little after [`NOW`], some at the same time, some tagged, some without a time.
fn points() -> impl Strategy<Value = Vec<Point>> {
    let steps = prop_oneof![Just(900i64), Just(3600), Just(40_000), Just(400_000), Just(4_000_000)];
    let one = (0u8..2, -3i64..60, 0u8..8, 0u8..20);
    (steps, proptest::collection::vec(one, 0..40)).prop_map(|(step, seeds)| {
        let make = |(n, (name, ago, tag, odd)): (usize, (u8, i64, u8, u8))| Point {
            id: id(n as u64),
            name: ["web", "db"][usize::from(name)].into(),
            time: (odd > 0).then(|| Timestamp::from_second(NOW - ago * step).unwrap()),
            tags: match tag {
                0 => [("keep".to_owned(), "yes".to_owned())].into(),
                1 => [("keep".to_owned(), "no".to_owned())].into(),
                _ => BTreeMap::new(),
            },
        };
        seeds.into_iter().enumerate().map(make).collect()
    })
}

fn policies() -> impl Strategy<Value = Policy> {
    let counts = proptest::collection::vec(prop_oneof![3 => Just(0u32), 3 => 1u32..6], 6);
    let within = proptest::option::of(proptest::sample::select(vec!["3h", "2d", "1mo", "2y"]));
    let tags = proptest::option::of(proptest::option::of(Just("yes".to_owned())));
    (counts, within, tags)
        .prop_map(|(counts, within, tag)| Policy {
            last: counts[0],
            hourly: counts[1],
            daily: counts[2],
            weekly: counts[3],
            monthly: counts[4],
            yearly: counts[5],
            within: within.map(|text| Within::parse(text).unwrap()),
            tags: tag.into_iter().map(|value| TagRule { key: "keep".into(), value }).collect(),
        })
        .prop_filter("a policy", |policy| !policy.is_empty())
}

proptest! {
    #[test]
    fn it_does_what_the_rules_say(policy in policies(), points in points(), in_berlin in any::<bool>()) {
        let now = Timestamp::from_second(NOW).unwrap();
        let zone = if in_berlin { berlin() } else { TimeZone::UTC };
        prop_assert_eq!(kept(&policy, &points, now, &zone), model(&policy, &points, now, &zone));
    }

    #[test]
    fn again_at_the_same_time_nothing_more_goes(policy in policies(), points in points()) {
        let now = Timestamp::from_second(NOW).unwrap();
        let first = decide(&policy, &points, now, &berlin()).unwrap();
        let left: Vec<Point> = points.into_iter().filter(|p| !first[&p.id].is_empty()).collect();
        for (id, why) in decide(&policy, &left, now, &berlin()).unwrap() {
            prop_assert_eq!(&why, &first[&id]);
        }
    }

    #[test]
    fn order_does_not_matter(policy in policies(), (points, shuffled) in points().prop_flat_map(|p| (Just(p.clone()), Just(p).prop_shuffle()))) {
        let now = Timestamp::from_second(NOW).unwrap();
        prop_assert_eq!(decide(&policy, &points, now, &berlin()).unwrap(), decide(&policy, &shuffled, now, &berlin()).unwrap());
    }

    #[test]
    fn more_keeps_more(policy in policies(), points in points(), rule in 0usize..6, more in 1u32..4) {
        let now = Timestamp::from_second(NOW).unwrap();
        let mut larger = policy.clone();
        *[&mut larger.last, &mut larger.hourly, &mut larger.daily, &mut larger.weekly, &mut larger.monthly, &mut larger.yearly][rule] += more;
        let after = kept(&larger, &points, now, &berlin());
        for (id, kept) in kept(&policy, &points, now, &berlin()) {
            prop_assert!(!kept || after[&id]);
        }
    }

    #[test]
    fn the_newest_of_a_name_stays_and_names_do_not_meet(policy in policies(), points in points()) {
        let now = Timestamp::from_second(NOW).unwrap();
        let all = decide(&policy, &points, now, &berlin()).unwrap();
        for name in ["web", "db"] {
            let own: Vec<Point> = points.iter().filter(|p| p.name == name).cloned().collect();
            for newest in [own.iter().max_by_key(|p| (p.time, p.id)), own.iter().filter(|p| p.time.is_some_and(|t| t <= now)).max_by_key(|p| (p.time, p.id))].into_iter().flatten() {
                prop_assert!(!all[&newest.id].is_empty());
            }
            for (id, why) in decide(&policy, &own, now, &berlin()).unwrap() {
                prop_assert_eq!(&why, &all[&id]);
            }
        }
    }
}
