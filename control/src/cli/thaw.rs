//! `--thaw` of restores: what has to be thawed, what that costs and takes, asking for it, and waiting.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::ValueEnum;
use penstock_engine::Error;
use penstock_engine::cold::{self, Depth, Onto, Survey};
use penstock_engine::format::point::Volume;
use penstock_engine::repo::Repository;
use penstock_engine::restore::RestoreOptions;
use penstock_engine::store::ThawOffer;
use penstock_engine::store::custody::{Availability, Thaw, ThawSpeed};
use serde::Serialize;

use super::exit::Failure;
use super::progress::{Kind, Mode};
use super::session::Session;
use super::{output, units};

/// Days that thawed copies stay unless asked otherwise.
const DAYS: u32 = 7;

/// Options of archived data.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct ThawArgs {
    /// Where data is archived: ask for it, so fast (prices and times are told without this option)
    #[arg(long, value_enum, value_name = "SPEED")]
    thaw: Option<SpeedArg>,

    /// How long the thawed copies stay [default: 7]
    #[arg(long, value_name = "DAYS", requires = "thaw", value_parser = clap::value_parser!(u32).range(1..=365))]
    thaw_days: Option<u32>,

    /// Wait until the data is there, and restore then
    #[arg(long, requires = "thaw")]
    thaw_wait: bool,
}

/// `--thaw`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum SpeedArg {
    /// The cheapest
    Bulk,
    /// Within hours
    Standard,
    /// Within minutes; not from DEEP_ARCHIVE
    Expedited,
}

impl From<SpeedArg> for ThawSpeed {
    fn from(arg: SpeedArg) -> Self {
        match arg {
            SpeedArg::Bulk => Self::Bulk,
            SpeedArg::Standard => Self::Standard,
            SpeedArg::Expedited => Self::Expedited,
        }
    }
}

/// What one speed costs, and how long it takes.
#[derive(Serialize)]
struct Offer {
    speed: String,
    takes: String,
    usd: f64,
}

/// The event of `--json` before a restore that needs archived data.
#[derive(Serialize)]
struct ArchivedEvent {
    event: &'static str,
    packs: usize,
    bytes: u64,
    under_way: usize,
    classes: BTreeMap<String, usize>,
    offers: Vec<Offer>,
    copy_days: u32,
}

/// The event of `--json` while waiting.
#[derive(Serialize)]
struct WaitingEvent {
    event: &'static str,
    readable: usize,
    packs: usize,
}

/// Finds what has to be thawed before anything is written. Asks for it and waits, as told; else says what to do and fails.
pub fn prepare(
    args: &ThawArgs,
    session: &Session,
    repo: &Repository,
    volume: &Volume,
    onto: Onto<'_>,
) -> Result<(), Failure> {
    let Some(custody) = repo.store().custody() else { return Ok(()) };
    let depth = if args.thaw.is_some() || custody.archives() { Depth::All } else { Depth::Sample };
    let survey = quietly(session, repo, volume, onto, depth)?;
    if survey.cold.is_empty() {
        return Ok(());
    }
    let days = args.thaw_days.unwrap_or(DAYS);
    tell(session, &survey, days);
    let Some(speed) = args.thaw.map(ThawSpeed::from) else { return Err(refusal(&survey)) };
    let how = Thaw { speed, days };
    refuse_what_is_not_offered(&survey, speed)?;
    let under_way =
        session.with_run_in(Kind::Restore, Mode::Off, |run| cold::thaw(repo, &survey, how, run))?;
    if !args.thaw_wait && under_way > 0 {
        return Err(Failure::Archived(format!(
            "{} being thawed. When they are there, run the same command again; with --thaw-wait it waits for them",
            units::plural(under_way as u64, "pack")
        )));
    }
    session.with_run_in(Kind::Restore, Mode::Off, |run| {
        let mut told = None;
        cold::wait(repo, &survey, pause_max(speed), run, &mut |readable, packs| {
            if told.replace(readable) != Some(readable) {
                waiting(session, readable, packs);
            }
        })
    })
}

/// A restore has met archived data all the same, where no sign of it was seen before.
pub fn met(
    failure: Failure,
    session: &Session,
    repo: &Repository,
    volume: &Volume,
    options: &RestoreOptions,
) -> Failure {
    if !matches!(failure, Failure::Engine(Error::Archived { .. })) {
        return failure;
    }
    let onto = Onto { base: options.base.as_ref(), block_bytes: None };
    match quietly(session, repo, volume, onto, Depth::All) {
        Ok(survey) if !survey.cold.is_empty() => {
            tell(session, &survey, DAYS);
            let refusal = refusal(&survey);
            Failure::Archived(format!(
                "{refusal}. The target is incomplete; add --resume, or --force, to that command"
            ))
        }
        Ok(_) => failure,
        Err(other) => other,
    }
}

fn quietly(
    session: &Session,
    repo: &Repository,
    volume: &Volume,
    onto: Onto<'_>,
    depth: Depth,
) -> Result<Survey, Failure> {
    session.with_run_in(Kind::Restore, Mode::Off, |run| cold::survey(repo, volume, onto, depth, run))
}

fn pause_max(speed: ThawSpeed) -> Duration {
    Duration::from_secs(match speed {
        ThawSpeed::Expedited => 15,
        ThawSpeed::Standard => 300,
        ThawSpeed::Bulk => 900,
    })
}

fn refuse_what_is_not_offered(survey: &Survey, speed: ThawSpeed) -> Result<(), Failure> {
    let without = survey.cold.iter().find(|cold| ThawOffer::of(&cold.facts.class, speed).is_none());
    match without {
        Some(cold) if speed == ThawSpeed::Expedited => Err(Failure::usage(format!(
            "--thaw expedited: {} has no such speed, which {} needs; take standard or bulk",
            cold.facts.class, cold.key
        ))),
        _ => Ok(()), // a class that is not known here: the service answers
    }
}

/// Objects and bytes still to be asked for, by class.
fn by_class(survey: &Survey) -> BTreeMap<&str, (u64, u64)> {
    let mut classes = BTreeMap::new();
    for cold in survey.cold.iter().filter(|cold| cold.facts.availability == Availability::Archived) {
        let (objects, bytes) = classes.entry(cold.facts.class.as_str()).or_insert((0, 0));
        *objects += 1;
        *bytes += cold.facts.bytes;
    }
    classes
}

fn offers(survey: &Survey, days: u32) -> Vec<Offer> {
    let classes = by_class(survey);
    let of = |speed: ThawSpeed| {
        let each: Option<Vec<_>> = classes
            .iter()
            .map(|(class, (objects, bytes))| {
                ThawOffer::of(class, speed).map(|offer| (offer.takes, offer.usd(*objects, *bytes, days)))
            })
            .collect();
        let each = each.filter(|each| !each.is_empty())?;
        let mut takes: Vec<&str> = each.iter().map(|(takes, _)| *takes).collect();
        takes.dedup();
        let usd = each.iter().map(|(_, usd)| usd).sum();
        Some(Offer { speed: speed.name().to_lowercase(), takes: takes.join(", "), usd })
    };
    ThawSpeed::ALL.into_iter().filter_map(of).collect()
}

fn under_way(survey: &Survey) -> usize {
    survey.cold.iter().filter(|cold| cold.facts.availability == Availability::Thawing).count()
}

/// Says what has to be thawed.
fn tell(session: &Session, survey: &Survey, days: u32) {
    if session.globals.json {
        let mut classes = BTreeMap::new();
        survey.cold.iter().for_each(|cold| *classes.entry(cold.facts.class.clone()).or_default() += 1);
        let event = ArchivedEvent {
            event: "archived",
            packs: survey.cold.len(),
            bytes: survey.cold_bytes(),
            under_way: under_way(survey),
            classes,
            offers: offers(survey, days),
            copy_days: days,
        };
        if let Ok(text) = output::json_text(&event) {
            output::note(&text);
        }
    } else {
        output::note(summary(survey, days).trim_end());
    }
}

fn summary(survey: &Survey, days: u32) -> String {
    let mut text = format!(
        "{} of the {} that this restore needs cannot be read before they are thawed: {}\n",
        units::count(survey.cold.len() as u64),
        units::plural(survey.looked_at as u64, "data pack"),
        units::size(survey.cold_bytes()),
    );
    for (class, (objects, bytes)) in by_class(survey) {
        text += &format!("  {class}: {}, {}\n", units::plural(objects, "pack"), units::size(bytes));
    }
    if under_way(survey) > 0 {
        text += &format!("  {} under way already\n", units::count(under_way(survey) as u64));
    }
    let offers = offers(survey, days);
    if !offers.is_empty() {
        text +=
            &format!("  what it takes (S3's prices in us-east-1, with copies that stay for {days} days):\n");
    }
    for offer in &offers {
        text += &format!("    --thaw {:<10} {:<16} about {:.4} USD\n", offer.speed, offer.takes, offer.usd);
    }
    text
}

fn waiting(session: &Session, readable: usize, packs: usize) {
    if session.globals.json {
        if let Ok(text) = output::json_text(&WaitingEvent { event: "thawing", readable, packs }) {
            output::note(&text);
        }
    } else if !session.globals.quiet {
        output::note(&format!("{readable} of {packs} packs are thawed"));
    }
}

fn refusal(survey: &Survey) -> Failure {
    let speed =
        if under_way(survey) == survey.cold.len() { "" } else { "; bulk and expedited are other speeds" };
    Failure::Archived(format!(
        "{} archived, and nothing was restored. Ask for them and wait{speed}: {} --thaw standard --thaw-wait",
        units::plural(survey.cold.len() as u64, "data pack"),
        command_line(std::env::args())
    ))
}

/// The command as a shell reads it.
fn command_line(args: impl Iterator<Item = String>) -> String {
    let quoted = |arg: String| {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@%+".contains(c);
        if !arg.is_empty() && arg.chars().all(plain) {
            arg
        } else {
            format!("'{}'", arg.replace('\'', "'\\''"))
        }
    };
    args.map(quoted).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use penstock_engine::cold::Cold;
    use penstock_engine::store::custody::Facts;

    fn survey(class: &str, packs: usize) -> Survey {
        let facts = Facts {
            bytes: 32_000_000,
            class: class.into(),
            availability: Availability::Archived,
            locked_until: None,
        };
        let cold = (0..packs).map(|n| Cold { key: format!("data/{n}"), facts: facts.clone() });
        Survey { looked_at: packs + 1, cold: cold.collect() }
    }

    #[test]
    fn prices_and_times_of_each_speed() {
        let text = summary(&survey("GLACIER", 1000), 30);
        assert!(text.starts_with("1,000 of the 1,001 data packs"), "{text}");
        for words in
            ["--thaw bulk       5 to 12 hours    about 0.7360 USD", "1 to 5 minutes   about 11.6960 USD"]
        {
            assert!(text.contains(words), "{words}: {text}");
        }
        let deep = summary(&survey("DEEP_ARCHIVE", 1), 7);
        assert!(deep.contains("up to 48 hours") && !deep.contains("expedited"), "{deep}");
        assert!(refuse_what_is_not_offered(&survey("DEEP_ARCHIVE", 1), ThawSpeed::Expedited).is_err());
        assert!(refuse_what_is_not_offered(&survey("COLD_OF_ANOTHER", 1), ThawSpeed::Bulk).is_ok());
    }

    #[test]
    fn commands_can_be_pasted() {
        let args = ["penstock", "restore", "latest:a b", "it's", "/dev/x"].map(str::to_owned);
        assert_eq!(command_line(args.into_iter()), r"penstock restore 'latest:a b' 'it'\''s' /dev/x");
    }
}
