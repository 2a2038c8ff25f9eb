//! Checks of this machine, of places and accounts: how they come out, and how they are shown.

use serde::Serialize;

use super::exit::{Exit, Outcome};
use super::output;
use super::session::Session;

/// How a check came out.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// It works.
    Ok,
    /// It works, but slower or with less than it could.
    Warn,
    /// It does not work.
    Fail,
}

/// One line of the result.
#[derive(Clone, Debug, Serialize)]
pub struct Check {
    /// What was looked at.
    pub name: &'static str,
    /// How it came out.
    pub status: Status,
    /// What was found.
    pub found: String,
    /// What to do, where something is to be done.
    pub advice: Option<String>,
}

impl Check {
    /// It works.
    pub fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, status: Status::Ok, found: found.into(), advice: None }
    }

    /// It works with less; what to do.
    pub fn warn(name: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { name, status: Status::Warn, found: found.into(), advice: said(advice) }
    }

    /// It does not work; what to do.
    pub fn fail(name: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { name, status: Status::Fail, found: found.into(), advice: said(advice) }
    }
}

/// Nothing to do is no advice.
fn said(advice: impl Into<String>) -> Option<String> {
    Some(advice.into()).filter(|advice| !advice.is_empty())
}

/// The result with `--json`.
#[derive(Serialize)]
struct Report<'a> {
    healthy: bool,
    checks: &'a [Check],
}

/// Shows them. Exit code 1 if one failed.
pub fn finish(session: &Session, checks: &[Check]) -> Outcome {
    let healthy = checks.iter().all(|check| check.status != Status::Fail);
    if session.globals.json {
        output::print_json(&Report { healthy, checks })?;
    } else {
        output::print(&text(checks, output::colours()))?;
    }
    Ok(if healthy { Exit::Done } else { Exit::Failed })
}

fn text(checks: &[Check], colours: bool) -> String {
    let width = checks.iter().map(|check| check.name.chars().count()).max().unwrap_or(0);
    let mut text = String::new();
    for check in checks {
        let (word, colour) = match check.status {
            Status::Ok => ("ok  ", 32),
            Status::Warn => ("warn", 33),
            Status::Fail => ("FAIL", 31),
        };
        let word = if colours { format!("\x1b[{colour}m{word}\x1b[0m") } else { word.to_owned() };
        text += &format!("{word}  {:<width$}  {}\n", check.name, check.found);
        if let Some(advice) = &check.advice {
            text += &format!("      {:<width$}  → {advice}\n", "");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_to_do_stands_below_what_was_found() {
        let checks = [Check::ok("cores", "2"), Check::fail("clock", "1970", "set it")];
        let plain = text(&checks, false);
        assert_eq!(plain, "ok    cores  2\nFAIL  clock  1970\n             → set it\n");
        assert!(text(&checks, true).contains("\x1b[31mFAIL\x1b[0m"));
        assert_eq!(serde_json::to_value(&checks[1]).unwrap()["status"], "fail");
    }
}
