//! `penstock ec2 restore --onto`.

use std::time::Instant;

use penstock_engine::cold::Onto;

use super::super::super::exit::Failure;
use super::super::super::output::{self, Table};
use super::super::super::{thaw, units};
use super::Common;
use crate::ec2restore::base;
use crate::ec2restore::job::Report;
use crate::ec2restore::onto::{OntoPlan, Over};
use crate::ec2restore::plan::BasePlan;
use crate::ec2restore::writing::Writing;
use crate::ec2run;

/// What is written over what. `volume`: what stands behind the slash of the point.
pub fn plan(common: &Common<'_>, volume: Option<&str>) -> Result<OntoPlan, Failure> {
    let (args, point) = (common.args, common.point);
    let base = args.base.as_deref().map(|text| common.point_of(text)).transpose()?;
    let mut over = Vec::new();
    for text in &args.onto {
        let (name, target) = match (text.split_once('='), volume, point.volumes.as_slice()) {
            (Some((name, target)), _, _) => (name.to_owned(), target),
            (None, Some(name), _) => (name.to_owned(), text.as_str()),
            (None, None, [one]) => (one.name.clone(), text.as_str()),
            (None, None, volumes) => {
                let names: Vec<&str> = volumes.iter().map(|v| v.name.as_str()).collect();
                return Err(Failure::usage(format!(
                    "which volume goes onto {text}? --onto VOLUME={text}, of: {}",
                    names.join(", ")
                )));
            }
        };
        let Some(found) = point.volume(&name) else {
            return Err(Failure::usage(format!("recovery point {} has no volume {name}", point.id)));
        };
        over.push(Over {
            volume: name,
            size_bytes: found.size_bytes,
            target: target.to_owned(),
            target_gib: 0,
            home: None,
            base: base.as_ref().map(|base| base.id.clone()),
            anchor: None,
            compare: args.compare,
            force: args.force,
        });
    }
    common.aws.block_on(OntoPlan::check(&common.aws, common.proxy.as_ref(), &mut over))?;
    if base.is_none() && !args.compare && !args.force && !args.no_base {
        find_anchors(common, &mut over)?;
    }
    if !args.dry_run {
        for part in &over {
            let Some(volume) = point.volume(&part.volume) else { continue };
            let onto = Onto { base: base.as_ref(), block_bytes: None };
            thaw::prepare(&args.thaw, common.session, common.repo, volume, onto)?;
        }
    }
    Ok(OntoPlan {
        recovery_point: point.id.clone(),
        region: common.aws.region.clone(),
        repository: common.repo.config().repository_id.clone(),
        over,
    })
}

/// Volumes that go back to an earlier state of their own, and whose last state is known by an anchor. What a mounted device holds a snapshot may not have yet, so
/// volumes of this instance are left out.
fn find_anchors(common: &Common<'_>, over: &mut [Over]) -> Result<(), Failure> {
    let here = common.proxy.as_ref().map(|p| p.instance.as_str());
    let is_own = |o: &Over| o.home.as_ref().is_some_and(|(instance, _)| Some(instance.as_str()) == here);
    let own: Vec<&mut Over> = over.iter_mut().filter(|o| o.volume == o.target && !is_own(o)).collect();
    let names: Vec<String> = own.iter().map(|o| o.target.clone()).collect();
    if names.is_empty() {
        return Ok(());
    }
    let repository = &common.repo.config().repository_id;
    let candidates = common.aws.block_on(base::candidates(&common.aws, repository, &names))?;
    for over in own {
        let Some(volume) = common.point.volume(&over.volume) else { continue };
        let of_it: Vec<_> = candidates.get(&over.target).into_iter().flatten().cloned().collect();
        let of_it: Vec<_> = of_it.into_iter().filter(|snapshot| snapshot.volume == over.target).collect();
        over.anchor = base::choose(common.repo, volume, &of_it)?
            .map(|found| BasePlan { snapshot: found.snapshot, recovery_point: found.point.id });
    }
    Ok(())
}

/// For people.
pub fn text(plan: &OntoPlan) -> String {
    let mut table = Table::new(&["volume", ">size", "onto", ">its size", "of", "writes"]);
    for over in &plan.over {
        let writes = match (&over.anchor, &over.base, over.compare) {
            (Some(anchor), ..) => format!(
                "what differs from {}, and what changed since {}",
                output::short_id(&anchor.recovery_point),
                anchor.snapshot
            ),
            (None, Some(base), _) => format!("what differs from {}", output::short_id(base)),
            (None, None, true) => "what differs from what it holds, which is read".into(),
            (None, None, false) => "everything".into(),
        };
        table.row(vec![
            over.volume.clone(),
            units::size(over.size_bytes),
            over.target.clone(),
            format!("{} GiB", over.target_gib),
            over.home.as_ref().map_or("nobody".into(), |(instance, device)| format!("{instance} {device}")),
            writes,
        ]);
    }
    table.text()
}

/// Does it.
pub fn perform(writing: &Writing<'_>, plan: &OntoPlan) -> ec2run::Result<Report> {
    let started = Instant::now();
    let (mut volumes, mut notes) = (Vec::new(), Vec::new());
    for over in &plan.over {
        volumes.push(writing.over(over, &mut notes)?);
    }
    Ok(Report {
        recovery_point: plan.recovery_point.clone(),
        region: plan.region.clone(),
        zone: writing.proxy.map(|p| p.zone.clone()).unwrap_or_default(),
        instance: None,
        private_ip: None,
        image: None,
        written_bytes: volumes.iter().map(|v| v.written_bytes).sum(),
        volumes,
        trial: None,
        duration_ms: started.elapsed().as_millis() as u64,
        notes,
    })
}
