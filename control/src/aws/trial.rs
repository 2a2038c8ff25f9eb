//! Trials: whether each permission is there, asked of AWS without doing anything. EC2's calls are made with DryRun; those that take something away, and those
//! bound to this program's tag, only on what this program made. The EBS direct APIs know no DryRun and are asked for the blocks of an anchor.

mod restores;

use aws_sdk_ec2::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_ec2::types::{
    BlockDeviceMapping, Filter, InstanceAttributeName, InstanceSpecification, ResourceType, Tag,
    TagSpecification, VolumeType,
};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;

use super::clients::{Clients, Proxy};
use super::describe::{self, Machine};
use super::error::{AwsError, Kind};
use super::identity::BRIEF;
use super::permissions::{PERMISSIONS, Part, Permission, call_of};
use super::tags::{self, RunTags};
use super::{images, launch, network, snapshots};

/// An id that no snapshot has.
const NO_SNAPSHOT: &str = "snap-ffffffffffffffff0";
/// Says nothing about a block.
const NO_TOKEN: &str = "AAAA";
/// Why there is nothing to try on, and when there is.
const NO_ANCHOR: &str =
    "no snapshot with the tag penstock:run is there to try it on: from the first backup on there is";
const NO_VOLUME: &str =
    "no volume with the tag penstock:run is there to try it on: while a backup attaches volumes there is";
const NO_IMAGE: &str =
    "no image with the tag penstock:run is there to try it on: after a backup with --mode ami there is";
const NO_INSTANCE: &str =
    "no instance with the tag penstock:run is there to try it on: while an instance is restored there is";
const NO_GROUP: &str =
    "no security group with the tag penstock:run is there to try it on: while a restore test runs there is";
const NOT_LISTED: &str = "things with the tag penstock:run cannot be listed, and so not tried on";

/// What AWS said.
#[derive(Clone, Debug)]
pub enum Verdict {
    /// It would have been done.
    Allowed,
    /// A policy does not allow it, or forbids it.
    Refused(Refusal),
    /// The answer, or its lack, proves nothing.
    Undecided(String),
    /// It would change nothing for this instance.
    NotNeeded(String),
}

/// Why not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Refusal {
    /// The action that AWS names.
    action: Option<String>,
    /// The kind of policy that forbids it, `None` if there is just none that allows it.
    pub explicit: Option<String>,
    /// Of tags: not together with these actions. Empty: not on what is there already.
    pub with: Vec<&'static str>,
}

/// A permission with what came of it.
#[derive(Debug)]
pub struct Trial {
    /// Which.
    pub permission: &'static Permission,
    /// What AWS said.
    pub verdict: Verdict,
    /// What the trial left open.
    pub note: Option<&'static str>,
}

/// What there is to try on, or why there is nothing.
#[derive(Clone, Debug)]
pub struct Subjects {
    /// An instance to be backed up.
    pub instance: Result<Machine, String>,
    /// The instance this program runs on, if it is in this region.
    pub proxy: Option<Proxy>,
    /// A complete snapshot that this program made, an anchor if there is one.
    snapshot: Result<String, &'static str>,
    /// A volume that this program made.
    volume: Result<String, &'static str>,
    /// An image that this program made.
    image: Result<String, &'static str>,
    /// An instance that this program made and has not handed over.
    launched: Result<String, &'static str>,
    /// A security group that this program made.
    group: Result<String, &'static str>,
}

impl Verdict {
    fn of(outcome: Result<(), AwsError>) -> Result<Self, AwsError> {
        Ok(match outcome {
            Ok(()) => Verdict::Allowed,
            Err(error) if error.kind == Kind::Cancelled => return Err(error),
            Err(error) if error.is("DryRunOperation") => Verdict::Allowed,
            Err(error) if error.is_refusal() => Verdict::Refused(Refusal::of(&error.message)),
            Err(error) => Verdict::Undecided(error.said()),
        })
    }
}

impl Refusal {
    /// Reads `User: … is not authorized to perform: ACTION on resource: … with an explicit deny in a service control policy. …`.
    fn of(message: &str) -> Self {
        let word = |text: &str| text.split_whitespace().next().map(str::to_owned);
        let action = message.split_once("to perform: ").and_then(|(_, rest)| word(rest));
        let explicit = message.split_once("explicit deny in ").map(|(_, rest)| {
            let end = rest.find(['.', ':']).unwrap_or(rest.len());
            rest[..end].trim().to_owned()
        });
        Refusal { action, explicit, with: Vec::new() }
    }

    fn names(&self, action: &str) -> bool {
        self.action.as_deref() == Some(action)
    }
}

/// What this account has to try on.
pub async fn subjects(
    aws: &Clients,
    instance: Result<Machine, String>,
    proxy: Option<Proxy>,
) -> Result<Subjects, AwsError> {
    let own = [tags::with_key(tags::RUN)];
    let complete = [own[0].clone(), Filter::builder().name("status").values("completed").build()];
    let mut found = snapshots::find(aws, &[], &complete, BRIEF).await;
    let is_anchor = |s: &snapshots::Snapshot| s.tags.get(tags::PURPOSE).is_some_and(|p| p == tags::ANCHOR);
    if let Ok(found) = &mut found {
        found.sort_by_key(|s| !is_anchor(s));
    }
    let is_there = |v: &describe::VolumeFacts| !v.state.starts_with("delet");
    Ok(Subjects {
        instance,
        proxy,
        snapshot: first(found, |_| true, |s| s.id, NO_ANCHOR)?,
        volume: first(describe::volumes(aws, &[], &own, BRIEF).await, is_there, |v| v.id, NO_VOLUME)?,
        image: first(images::find(aws, &[], &own).await, |_| true, |i| i.id, NO_IMAGE)?,
        launched: first(launch::find(aws, &[], &own, BRIEF).await, |_| true, |i| i.0, NO_INSTANCE)?,
        group: first(network::groups(aws, &own).await, |_| true, |g| g.0, NO_GROUP)?,
    })
}

/// The id of the first one that will do.
fn first<T>(
    found: Result<Vec<T>, AwsError>,
    will_do: impl Fn(&T) -> bool,
    id: impl Fn(T) -> String,
    none: &'static str,
) -> Result<Result<String, &'static str>, AwsError> {
    match found {
        Ok(found) => Ok(found.into_iter().find(will_do).map(id).ok_or(none)),
        Err(error) if error.kind == Kind::Cancelled => Err(error),
        Err(_) => Ok(Err(NOT_LISTED)),
    }
}

/// True if there is a way to try it: KMS is asked by EC2 alone.
pub fn is_tried(permission: &Permission) -> bool {
    !matches!(permission.part, Part::Kms | Part::RestoreKms)
}

/// Tries all that can be tried, in the order of the table.
pub async fn all(aws: &Clients, on: &Subjects) -> Result<Vec<Trial>, AwsError> {
    let mut trials = Vec::new();
    let mut tagging: Vec<(&'static str, Verdict)> = Vec::new();
    for permission in PERMISSIONS.iter().filter(|p| is_tried(p)) {
        let action = permission.action;
        let mut note = None;
        let verdict = if permission.makes {
            let (verdict, tagged) = make_both(aws, action, on).await?;
            tagging.extend(tagged.map(|tagged| (action, tagged)));
            if action == "ec2:CreateVolume" && on.snapshot.is_err() {
                note = Some("an empty volume: there is no anchor to make one of");
            }
            verdict
        } else if matches!(action, "ebs:StartSnapshot" | "ebs:PutSnapshotBlock" | "ebs:CompleteSnapshot") {
            let (verdict, left) = restores::write(aws, action, on).await?;
            note = left;
            verdict
        } else if action.starts_with("ebs:") {
            read(aws, action, on).await?
        } else if action == "iam:PassRole" {
            restores::pass_role(aws, on).await?
        } else if action == "ec2:CreateTags" {
            together(&tagging, own(aws, action, on).await?)
        } else if permission.scopes.iter().any(|scope| scope.is_own()) {
            own(aws, action, on).await?
        } else {
            look(aws, action, on).await?
        };
        trials.push(Trial { permission, verdict, note });
    }
    Ok(trials)
}

async fn dry<T, E, F>(
    aws: &Clients,
    action: &'static str,
    object: &str,
    attempt: impl FnMut() -> F,
) -> Result<Verdict, AwsError>
where
    F: Future<Output = Result<T, SdkError<E, HttpResponse>>>,
    E: ProvideErrorMetadata + std::error::Error + 'static,
{
    Verdict::of(aws.retry.call(call_of(action), object, BRIEF, attempt).await.map(drop))
}

/// Calls that only look.
async fn look(aws: &Clients, action: &'static str, on: &Subjects) -> Result<Verdict, AwsError> {
    let (ec2, object) = (&aws.ec2, aws.region.as_str());
    match action {
        "ec2:DescribeInstances" => {
            dry(aws, action, object, || ec2.describe_instances().dry_run(true).send()).await
        }
        "ec2:DescribeVolumes" => {
            dry(aws, action, object, || ec2.describe_volumes().dry_run(true).send()).await
        }
        "ec2:DescribeSnapshots" => {
            dry(aws, action, object, || ec2.describe_snapshots().owner_ids("self").dry_run(true).send()).await
        }
        "ec2:DescribeImages" => {
            dry(aws, action, object, || ec2.describe_images().owners("self").dry_run(true).send()).await
        }
        "ec2:DescribeInstanceAttribute" => {
            let machine = match &on.instance {
                Ok(machine) => machine,
                Err(why) => return Ok(Verdict::Undecided(why.clone())),
            };
            dry(aws, action, &machine.id, || {
                let call = ec2.describe_instance_attribute().instance_id(&machine.id);
                call.attribute(InstanceAttributeName::UserData).dry_run(true).send()
            })
            .await
        }
        _ => restores::look(aws, action, on).await,
    }
}

/// Tries to make something with its tags, as a backup does, and tells from the answer, or from that to a second call without tags, what of the two is missing. The
/// second verdict is that on tags; `None` if the answer does not speak of them.
async fn make_both(
    aws: &Clients,
    action: &'static str,
    on: &Subjects,
) -> Result<(Verdict, Option<Verdict>), AwsError> {
    const TAGS: &str = "ec2:CreateTags";
    let refusal = match make(aws, action, on, true).await? {
        Verdict::Allowed => return Ok((Verdict::Allowed, Some(Verdict::Allowed))),
        open @ (Verdict::Undecided(_) | Verdict::NotNeeded(_)) => return Ok((open, None)),
        Verdict::Refused(refusal) if refusal.names(action) => return Ok((Verdict::Refused(refusal), None)),
        Verdict::Refused(refusal) => refusal,
    };
    Ok(match make(aws, action, on, false).await? {
        Verdict::Allowed => (Verdict::Allowed, Some(Verdict::Refused(refusal))),
        // It may be allowed with tags only.
        _ if refusal.names(TAGS) => {
            let why = "it is not allowed without tags, and tags are not allowed".to_owned();
            (Verdict::Undecided(why), Some(Verdict::Refused(refusal)))
        }
        _ => (Verdict::Refused(refusal), None),
    })
}

async fn make(aws: &Clients, action: &'static str, on: &Subjects, tagged: bool) -> Result<Verdict, AwsError> {
    let machine = match &on.instance {
        Ok(machine) => machine,
        Err(why) => return Ok(Verdict::Undecided(why.clone())),
    };
    let tags = RunTags { run: "doctor".into(), expires: "1970-01-01T00:00:00Z".into() }.temporary();
    let specifications = |kinds: &[ResourceType]| -> Option<Vec<TagSpecification>> {
        tagged.then(|| kinds.iter().map(|kind| tags::specification(kind.clone(), &tags)).collect())
    };
    let ec2 = &aws.ec2;
    match action {
        "ec2:CreateSnapshots" => {
            let of = InstanceSpecification::builder().instance_id(&machine.id).build();
            dry(aws, action, &machine.id, || {
                ec2.create_snapshots()
                    .instance_specification(of.clone())
                    .set_tag_specifications(specifications(&[ResourceType::Snapshot]))
                    .dry_run(true)
                    .send()
            })
            .await
        }
        "ec2:CreateVolume" => {
            let zone = on.proxy.as_ref().map_or(machine.zone.as_str(), |p| p.zone.as_str());
            dry(aws, action, zone, || {
                let call = ec2.create_volume().availability_zone(zone).volume_type(VolumeType::Gp3);
                let call = match &on.snapshot {
                    Ok(snapshot) => call.snapshot_id(snapshot),
                    Err(_) => call.size(1),
                };
                call.set_tag_specifications(specifications(&[ResourceType::Volume])).dry_run(true).send()
            })
            .await
        }
        "ec2:CreateImage" => {
            let data = machine.attached.iter().filter(|a| !a.root);
            let without: Vec<BlockDeviceMapping> = data
                .map(|a| BlockDeviceMapping::builder().device_name(&a.device).no_device("").build())
                .collect();
            dry(aws, action, &machine.id, || {
                ec2.create_image()
                    .instance_id(&machine.id)
                    .name("penstock-doctor")
                    .no_reboot(true)
                    .set_block_device_mappings((!without.is_empty()).then(|| without.clone()))
                    .set_tag_specifications(specifications(&[ResourceType::Image, ResourceType::Snapshot]))
                    .dry_run(true)
                    .send()
            })
            .await
        }
        _ => restores::make(aws, action, on, machine, specifications).await,
    }
}

/// Calls on what this program made.
async fn own(aws: &Clients, action: &'static str, on: &Subjects) -> Result<Verdict, AwsError> {
    let subject = match action {
        "ec2:AttachVolume" | "ec2:DetachVolume" | "ec2:DeleteVolume" => &on.volume,
        "ec2:DeregisterImage" => &on.image,
        "ec2:TerminateInstances" | "ec2:ModifyInstanceAttribute" => &on.launched,
        "ec2:RevokeSecurityGroupEgress" | "ec2:AuthorizeSecurityGroupIngress" | "ec2:DeleteSecurityGroup" => {
            &on.group
        }
        _ => &on.snapshot,
    };
    let id = match subject {
        Ok(id) => id.as_str(),
        Err(why) => return Ok(Verdict::Undecided((*why).into())),
    };
    let ec2 = &aws.ec2;
    match action {
        "ec2:DeleteSnapshot" => {
            dry(aws, action, id, || ec2.delete_snapshot().snapshot_id(id).dry_run(true).send()).await
        }
        "ec2:CreateTags" => {
            let tag = Tag::builder().key(tags::PURPOSE).value(tags::ANCHOR).build();
            dry(aws, action, id, || ec2.create_tags().resources(id).tags(tag.clone()).dry_run(true).send())
                .await
        }
        "ec2:DeleteTags" => {
            let tag = Tag::builder().key(tags::EXPIRES).build();
            dry(aws, action, id, || ec2.delete_tags().resources(id).tags(tag.clone()).dry_run(true).send())
                .await
        }
        "ec2:AttachVolume" => {
            let Some(proxy) = &on.proxy else {
                return Ok(Verdict::Undecided("volumes cannot be attached to where this runs".into()));
            };
            dry(aws, action, id, || {
                let call = ec2.attach_volume().volume_id(id).instance_id(&proxy.instance);
                call.device("/dev/sdp").dry_run(true).send()
            })
            .await
        }
        "ec2:DetachVolume" => {
            dry(aws, action, id, || ec2.detach_volume().volume_id(id).dry_run(true).send()).await
        }
        "ec2:DeleteVolume" => {
            dry(aws, action, id, || ec2.delete_volume().volume_id(id).dry_run(true).send()).await
        }
        "ec2:DeregisterImage" => {
            dry(aws, action, id, || ec2.deregister_image().image_id(id).dry_run(true).send()).await
        }
        _ => restores::own(aws, action, id).await,
    }
}

/// The table has an action that this file lacks.
fn not_known() -> Verdict {
    Verdict::Undecided("this program does not know how to try it".into())
}

/// Tags of what is made, and of what is there.
fn together(tagging: &[(&'static str, Verdict)], own: Verdict) -> Verdict {
    let refused = |verdict: &Verdict| match verdict {
        Verdict::Refused(refusal) => Some(refusal.clone()),
        _ => None,
    };
    if let Some(refusal) = refused(&own) {
        return Verdict::Refused(refusal);
    }
    let with: Vec<&'static str> =
        tagging.iter().filter(|(_, verdict)| refused(verdict).is_some()).map(|(action, _)| *action).collect();
    if let Some(refusal) = tagging.iter().find_map(|(_, verdict)| refused(verdict)) {
        return Verdict::Refused(Refusal { with, ..refusal });
    }
    match own {
        Verdict::Undecided(why) if tagging.is_empty() => Verdict::Undecided(why),
        Verdict::Undecided(why) => Verdict::Undecided(format!("allowed for new things, for others {why}")),
        other => other,
    }
}

/// Reads a little of an anchor. Without one, a snapshot is asked for that does not exist: a refusal that names the action is one; that the snapshot is not found
/// proves nothing, since AWS does not say what it looks at first.
async fn read(aws: &Clients, action: &'static str, on: &Subjects) -> Result<Verdict, AwsError> {
    let id = on.snapshot.as_deref().unwrap_or(NO_SNAPSHOT);
    let call = call_of(action);
    let mut is_listed = true;
    let outcome = match action {
        "ebs:ListSnapshotBlocks" => first_block(aws, id).await.map(drop),
        "ebs:ListChangedBlocks" => aws
            .retry
            .call(call, id, BRIEF, || {
                aws.ebs.list_changed_blocks().first_snapshot_id(id).second_snapshot_id(id).send()
            })
            .await
            .map(drop),
        "ebs:GetSnapshotBlock" => {
            let first = first_block(aws, id).await.ok().flatten();
            is_listed = first.is_some();
            let (index, token) = first.unwrap_or((0, NO_TOKEN.into()));
            aws.retry
                .call(call, id, BRIEF, || {
                    aws.ebs.get_snapshot_block().snapshot_id(id).block_index(index).block_token(&token).send()
                })
                .await
                .map(drop)
        }
        _ => return Ok(not_known()),
    };
    Ok(match Verdict::of(outcome)? {
        // The key of an encrypted snapshot shows like this, too.
        Verdict::Refused(refusal) if !refusal.names(action) => Verdict::Undecided(format!(
            "AWS refuses to read {id}, and not for the lack of this permission: a KMS key?"
        )),
        Verdict::Undecided(why) => match on.snapshot {
            Err(why) => Verdict::Undecided(why.into()),
            Ok(_) if !is_listed => Verdict::Undecided(format!("no block of {id} is known to read")),
            Ok(_) => Verdict::Undecided(why),
        },
        other => other,
    })
}

/// Index and token of the first block of a snapshot that has any.
async fn first_block(aws: &Clients, id: &str) -> Result<Option<(i32, String)>, AwsError> {
    let page = aws
        .retry
        .call("ListSnapshotBlocks", id, BRIEF, || {
            aws.ebs.list_snapshot_blocks().snapshot_id(id).max_results(100).send()
        })
        .await?;
    Ok(page.blocks().first().and_then(|b| Some((b.block_index()?, b.block_token()?.to_owned()))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_read() {
        let refusal = Refusal::of(
            "You are not authorized to perform this operation. User: arn:aws:iam::1:user/x is not authorized to perform: ec2:CreateTags on resource: arn:aws:ec2:r::snapshot/* with an explicit deny in a service control policy. Encoded authorization failure message: abc",
        );
        assert!(refusal.names("ec2:CreateTags"));
        assert_eq!(refusal.explicit.as_deref(), Some("a service control policy"));
        let old = Refusal::of("You are not authorized to perform this operation.");
        assert!(old.action.is_none() && old.explicit.is_none());
    }

    #[test]
    fn tags_are_one_permission() {
        let refused = || Verdict::Refused(Refusal::default());
        let tagging = [("ec2:CreateSnapshots", Verdict::Allowed), ("ec2:CreateVolume", refused())];
        let Verdict::Refused(refusal) = together(&tagging, Verdict::Allowed) else { panic!() };
        assert_eq!(refusal.with, ["ec2:CreateVolume"]);
        assert!(matches!(together(&tagging[..1], Verdict::Allowed), Verdict::Allowed));
        assert!(matches!(together(&tagging[..1], not_known()), Verdict::Undecided(_)));
        let Verdict::Refused(refusal) = together(&tagging, refused()) else { panic!() };
        assert!(refusal.with.is_empty());
    }
}
