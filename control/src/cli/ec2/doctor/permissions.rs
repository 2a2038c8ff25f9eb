//! What AWS said to each trial, with the feature it is about.

use std::collections::{BTreeMap, BTreeSet};

use crate::aws::AwsError;
use crate::aws::clients::{Clients, Proxy};
use crate::aws::describe::{self, Machine};
use crate::aws::error::Kind;
use crate::aws::identity::BRIEF;
use crate::aws::permissions::{self, Loss, PERMISSIONS};
use crate::aws::trial::{self, Refusal, Trial, Verdict};

use super::super::super::check::Check;

/// Tries all permissions, and says what the instance's keys need.
pub async fn checks(
    aws: &Clients,
    machine: Result<Machine, String>,
    here: Option<Proxy>,
) -> Result<Vec<Check>, AwsError> {
    let keys = keys(aws, &machine).await?;
    let is_here = here.is_some();
    let trials = trial::all(aws, &trial::subjects(aws, machine, here).await?).await?;
    let refused = trials.iter().filter(|t| matches!(t.verdict, Verdict::Refused(_)));
    let around = Around { is_here, refused: refused.map(|t| t.permission.action).collect() };
    let mut checks: Vec<Check> = trials.iter().map(|trial| check(trial, &around)).collect();
    checks.extend(keys);
    Ok(checks)
}

/// What decides how bad a refusal is.
struct Around {
    /// Volumes could be attached here, if that is permitted.
    is_here: bool,
    /// All that is not allowed.
    refused: BTreeSet<&'static str>,
}

impl Around {
    /// Whether all is lost with this.
    fn is_bad(&self, loss: Loss) -> bool {
        match loss {
            Loss::Everything => true,
            Loss::Feature => false,
            Loss::UnlessAttached => {
                !self.is_here
                    || self.refused.contains("ec2:CreateVolume")
                    || self.refused.contains("ec2:AttachVolume")
            }
            Loss::CleanUp { of } => !self.refused.contains(of),
        }
    }
}

fn check(trial: &Trial, around: &Around) -> Check {
    let permission = trial.permission;
    let name = permission.action;
    match &trial.verdict {
        Verdict::Allowed => Check::ok(
            name,
            match trial.note {
                Some(note) => format!("allowed ({note})"),
                None => "allowed".into(),
            },
        ),
        Verdict::NotNeeded(why) => Check::ok(name, format!("not needed: {why}")),
        Verdict::Undecided(why) => {
            Check::warn(name, format!("not decided: {why}"), format!("without it: {}", permission.without))
        }
        Verdict::Refused(refusal) => {
            let (is_bad, without) = loss(trial, refusal, around);
            let (found, advice) = match &refusal.explicit {
                Some(policy) => (
                    format!("forbidden by {policy}: {without}"),
                    "whoever keeps that policy has to change it: what forbids wins over what allows"
                        .to_owned(),
                ),
                None => {
                    let option = if name == "iam:PassRole" { " --pass-role ROLE-ARN" } else { "" };
                    (
                        format!("missing: {without}"),
                        format!("`penstock ec2 iam-policy{option}` prints the policy that has it"),
                    )
                }
            };
            if is_bad { Check::fail(name, found, advice) } else { Check::warn(name, found, advice) }
        }
    }
}

/// Whether all is lost without it, and what is.
fn loss(trial: &Trial, refusal: &Refusal, around: &Around) -> (bool, String) {
    let permission = trial.permission;
    // Tags that only some of what is made may not have.
    if !refusal.with.is_empty() {
        let of: Vec<&permissions::Permission> =
            refusal.with.iter().filter_map(|action| permissions::named(action)).collect();
        let calls: Vec<&str> = of.iter().map(|p| permissions::call_of(p.action)).collect();
        let without: BTreeSet<&str> = of.iter().map(|p| p.without).collect();
        let without: Vec<&str> = without.into_iter().collect();
        let is_bad = of.iter().any(|p| around.is_bad(p.loss));
        return (is_bad, format!("not with {}: {}", calls.join(", "), without.join("; ")));
    }
    (around.is_bad(permission.loss), permission.without.to_owned())
}

/// What the keys of the instance's volumes need. EC2 asks KMS in the caller's name, and has no way to try that.
async fn keys(aws: &Clients, machine: &Result<Machine, String>) -> Result<Vec<Check>, AwsError> {
    const NAME: &str = "KMS keys";
    let actions: Vec<&str> = PERMISSIONS.iter().filter(|p| !trial::is_tried(p)).map(|p| p.action).collect();
    let actions = actions.join(", ");
    let advice = "a key of your own must allow that in its key policy, too";
    let machine = match machine {
        Ok(machine) => machine,
        Err(why) => {
            return Ok(vec![Check::warn(NAME, format!("not checked: {why}; not tried: {actions}"), advice)]);
        }
    };
    let ids: Vec<String> = machine.attached.iter().map(|a| a.volume.clone()).collect();
    let volumes = match ids.as_slice() {
        [] => Vec::new(),
        ids => match describe::volumes(aws, ids, &[], BRIEF).await {
            Ok(volumes) => volumes,
            Err(error) if error.kind == Kind::Cancelled => return Err(error),
            Err(error) => {
                return Ok(vec![Check::warn(NAME, format!("not checked: {}", error.said()), advice)]);
            }
        },
    };
    let mut of_key: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for volume in volumes.into_iter().filter(|v| v.encrypted) {
        let key = volume.whole["kmsKeyId"].as_str().unwrap_or("a key that AWS does not name").to_owned();
        of_key.entry(key).or_default().push(volume.id);
    }
    if of_key.is_empty() {
        let found = format!("no volume of {} is encrypted; not tried: {actions}", machine.id);
        return Ok(vec![Check::ok(NAME, found)]);
    }
    let check = |(key, volumes): (String, Vec<String>)| {
        Check::warn(NAME, format!("{key} of {}: not tried: {actions}", volumes.join(", ")), advice)
    };
    Ok(of_key.into_iter().map(check).collect())
}
