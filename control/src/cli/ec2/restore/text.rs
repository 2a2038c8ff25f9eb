//! What `penstock ec2 restore` says to people.

use super::super::super::output::{self, Facts, Table};
use super::super::super::units;
use crate::ec2restore::job::{Report, VolumeReport};
use crate::ec2restore::machine::ImagePlan;
use crate::ec2restore::plan::{Plan, VolumePlan};
use crate::ec2restore::trial::Verdict;

/// What will be done.
pub fn plan(plan: &Plan) -> String {
    let point = output::short_id(&plan.recovery_point);
    let of = format!("{point} ({}, {})", plan.name, output::time(&plan.started_at));
    let mut text = match &plan.machine {
        Some(machine) => {
            format!("{of} to a new {} in {}\n", machine.launch.instance_type, plan.zone)
        }
        None => format!("{of} to volumes in {}\n", plan.zone),
    };
    let mut table =
        Table::new(&["volume", "device", ">size", "from", ">differs", "way", ">to write", ">time", ">USD"]);
    plan.volumes.iter().for_each(|volume| table.row(row(volume)));
    text += &table.text();
    let mut facts = Facts::default();
    for volume in &plan.volumes {
        if let Some(decision) = &volume.decision {
            facts.add(&volume.volume, &decision.why);
        }
    }
    if let Some(machine) = &plan.machine {
        let launch = &machine.launch;
        facts.add(
            "image",
            match &machine.image {
                ImagePlan::Kept { id } => format!("{id}, which was kept"),
                ImagePlan::Named { id, .. } => id.clone(),
                ImagePlan::Registered(of) => format!(
                    "made of the root, and removed after the launch ({}, {})",
                    of.architecture,
                    of.boot_mode.as_deref().unwrap_or("the type's boot mode")
                ),
            },
        );
        facts.add("subnet", &launch.subnet);
        let groups = if launch.groups.is_empty() && plan.trial {
            "a new one that is closed".to_owned()
        } else {
            launch.groups.join(", ")
        };
        facts.add("groups", groups);
        for (label, value) in [
            ("key pair", &launch.key_pair),
            ("profile", &launch.profile_arn.clone().or_else(|| launch.profile_name.clone())),
            ("address", &launch.private_ip),
        ] {
            if let Some(value) = value {
                facts.add(label, value);
            }
        }
    }
    let seconds = units::seconds(plan.seconds.ceil() as u64);
    facts.add("to write", format!("{} at most", units::size(plan.write_bytes)));
    facts.add(
        "writing",
        format!("about {:.4} USD, {seconds} one after the other; AWS's own time for images and launches comes on top", plan.usd),
    );
    text + &facts.text()
}

fn row(volume: &VolumePlan) -> Vec<String> {
    let from = volume.base.as_ref().map_or("-".to_owned(), |base| {
        format!("{} ({})", base.snapshot, output::short_id(&base.recovery_point))
    });
    let estimate = volume.decision.as_ref().map(|d| d.estimate);
    let of = |get: &dyn Fn(crate::ec2backup::way::Estimate) -> String| estimate.map_or("-".to_owned(), get);
    vec![
        volume.volume.clone(),
        volume.device.clone(),
        units::size(volume.size_bytes),
        from,
        units::size(volume.differing_bytes),
        volume.write.name().to_owned(),
        of(&|e| units::size(e.bytes)),
        of(&|e| units::seconds(e.seconds.ceil() as u64)),
        of(&|e| format!("{:.4}", e.usd)),
    ]
}

/// What was done.
pub fn report(report: &Report, name: &str) -> String {
    let point = output::short_id(&report.recovery_point);
    let mut text = match (&report.instance, &report.trial) {
        (Some(id), Some(verdict)) => {
            let word = if verdict.passed { "passed" } else { "FAILED" };
            format!("restore test of {point} ({name}) {word}; {id} and its volumes are gone again\n")
        }
        (Some(id), None) => format!("restored {point} ({name}) as {id}\n"),
        (None, _) => format!("restored volumes of {point} ({name})\n"),
    };
    let mut table =
        Table::new(&["volume", "device", "restored to", ">size", "from", "way", ">written", ">same"]);
    report.volumes.iter().for_each(|volume| table.row(volume_row(volume)));
    text += &table.text();
    let mut facts = Facts::default();
    if let Some(address) = &report.private_ip {
        facts.add("address", address);
    }
    if let Some(verdict) = &report.trial {
        trial(verdict, &mut facts);
    }
    facts.add("zone", &report.zone);
    facts.add("written", units::size(report.written_bytes));
    facts.add("time", units::duration(report.duration_ms));
    text + &facts.text()
}

fn volume_row(volume: &VolumeReport) -> Vec<String> {
    vec![
        volume.volume.clone(),
        volume.device.clone(),
        volume.restored_to.clone().unwrap_or_else(|| "-".into()),
        units::size(volume.size_bytes),
        volume.base.clone().unwrap_or_else(|| "-".into()),
        volume.write.name().to_owned(),
        units::size(volume.written_bytes),
        units::size(volume.skipped_same_bytes),
    ]
}

fn trial(verdict: &Verdict, facts: &mut Facts) {
    facts.add(
        "status checks",
        format!("instance {}, host {}", verdict.instance_status, verdict.system_status),
    );
    if let Some(answers) = verdict.tcp {
        facts.add("tcp", if answers { "answers" } else { "does not answer" });
    }
    if let Some(code) = verdict.command_exit {
        facts.add("command", format!("exit code {code}"));
    }
    facts.add("trial", units::duration(verdict.duration_ms));
    if let Some(why) = &verdict.why {
        facts.add("why", why);
    }
    if let Some(console) = &verdict.console {
        facts.add("console", format!("…\n{console}"));
    }
}
