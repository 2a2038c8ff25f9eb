//! The permissions that backups and restores of EC2 instances need: one table, from which the policy is printed and by which a doctor asks.

use super::tags;

/// Which permissions are left out when a feature is not wanted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Part {
    /// Every backup.
    Always,
    /// Volumes that are attached to the proxy.
    Attach,
    /// Mode ami.
    Ami,
    /// Encrypted volumes.
    Kms,
    /// Restores.
    Restore,
    /// New volumes: to be attached, or restored.
    Volumes,
    /// Images taken away: those of mode ami, or of restores.
    Images,
    /// Restores of encrypted volumes.
    RestoreKms,
}

/// What comes of it if one is missing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Loss {
    /// Nothing can be backed up, or what was made stays and costs.
    Everything,
    /// One feature.
    Feature,
    /// One feature; as bad as [`Loss::Everything`] where volumes cannot be attached.
    UnlessAttached,
    /// What this action makes cannot be taken away: as bad as [`Loss::Everything`] if that may be made, nothing otherwise.
    CleanUp {
        /// `ec2:CreateVolume`.
        of: &'static str,
    },
}

/// On what something is allowed: a statement of the policy each.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scope {
    /// Looking, at everything.
    Describe,
    /// Snapshots of any instance.
    Snapshot,
    /// What snapshots hold.
    ReadSnapshots,
    /// New volumes.
    MakeVolumes,
    /// Whichever instance is the proxy.
    AttachToProxy,
    /// Volumes that this program made.
    OwnVolumes,
    /// New images.
    MakeImages,
    /// Tags of what is made, while it is made.
    TagNewThings,
    /// Snapshots and images that this program made.
    OwnThings,
    /// Keys of encrypted volumes.
    ReadEncrypted,
    /// The same, by EC2 in the caller's name.
    MakeEncrypted,
    /// For EC2 itself.
    Grant,
    /// Snapshots written block by block.
    StartSnapshots,
    /// The same, once they carry the tag.
    WriteSnapshots,
    /// Images of restored roots.
    RegisterImages,
    /// Restored instances, with all that they are launched from.
    Launch,
    /// Instances that this program made, until they are handed over.
    OwnInstances,
    /// Security groups that isolate a trial.
    MakeGroups,
    /// Those groups.
    OwnGroups,
    /// Their rules.
    GroupRules,
    /// What was restored, when it is handed over.
    OwnRestored,
    /// Volumes of the user's, which are written over.
    AnyVolumes,
    /// Roles that restored instances get.
    PassRoles,
}

impl Scope {
    /// All, in the order of the policy.
    pub const ALL: [Scope; 23] = [
        Scope::Describe,
        Scope::Snapshot,
        Scope::ReadSnapshots,
        Scope::MakeVolumes,
        Scope::AttachToProxy,
        Scope::OwnVolumes,
        Scope::MakeImages,
        Scope::TagNewThings,
        Scope::OwnThings,
        Scope::ReadEncrypted,
        Scope::MakeEncrypted,
        Scope::Grant,
        Scope::StartSnapshots,
        Scope::WriteSnapshots,
        Scope::RegisterImages,
        Scope::Launch,
        Scope::OwnInstances,
        Scope::MakeGroups,
        Scope::OwnGroups,
        Scope::GroupRules,
        Scope::OwnRestored,
        Scope::AnyVolumes,
        Scope::PassRoles,
    ];

    /// ARNs; `*` for all there is.
    pub fn resources(self) -> &'static [&'static str] {
        const INSTANCE: &str = "arn:aws:ec2:*:*:instance/*";
        const VOLUME: &str = "arn:aws:ec2:*:*:volume/*";
        const SNAPSHOT: &str = "arn:aws:ec2:*::snapshot/*";
        const IMAGE: &str = "arn:aws:ec2:*::image/*";
        const GROUP: &str = "arn:aws:ec2:*:*:security-group/*";
        match self {
            Scope::Describe | Scope::ReadEncrypted | Scope::MakeEncrypted | Scope::Grant => &["*"],
            Scope::Snapshot => &[INSTANCE, VOLUME, SNAPSHOT],
            Scope::ReadSnapshots => &[SNAPSHOT],
            Scope::MakeVolumes => &[VOLUME, SNAPSHOT],
            Scope::AttachToProxy => &[INSTANCE],
            Scope::OwnVolumes => &[VOLUME],
            Scope::MakeImages => &[INSTANCE, VOLUME, IMAGE, SNAPSHOT],
            Scope::TagNewThings => &[SNAPSHOT, IMAGE, VOLUME, INSTANCE, GROUP],
            Scope::OwnThings => &[SNAPSHOT, IMAGE],
            Scope::StartSnapshots | Scope::WriteSnapshots => &[SNAPSHOT],
            Scope::RegisterImages => &[IMAGE, SNAPSHOT],
            Scope::Launch => &[
                INSTANCE,
                VOLUME,
                IMAGE,
                SNAPSHOT,
                GROUP,
                "arn:aws:ec2:*:*:network-interface/*",
                "arn:aws:ec2:*:*:subnet/*",
                "arn:aws:ec2:*:*:key-pair/*",
            ],
            Scope::OwnInstances => &[INSTANCE],
            Scope::MakeGroups => &[GROUP, "arn:aws:ec2:*:*:vpc/*"],
            Scope::OwnGroups => &[GROUP],
            Scope::GroupRules => &["arn:aws:ec2:*:*:security-group-rule/*"],
            Scope::OwnRestored => &[INSTANCE, VOLUME],
            Scope::AnyVolumes => &[VOLUME],
            // The user names them.
            Scope::PassRoles => &[],
        }
    }

    /// Operator, key and value of its condition. That of [`Scope::TagNewThings`] has one value for each action that makes something.
    pub fn condition(self) -> Option<(&'static str, String, &'static str)> {
        match self {
            Scope::PassRoles => Some(("StringEquals", "iam:PassedToService".into(), "ec2.amazonaws.com")),
            own if own.is_own() => Some(("StringLike", format!("aws:ResourceTag/{}", tags::RUN), "*")),
            Scope::MakeEncrypted => Some(("StringLike", "kms:ViaService".into(), "ec2.*.amazonaws.com")),
            Scope::Grant => Some(("Bool", "kms:GrantIsForAWSResource".into(), "true")),
            _ => None,
        }
    }

    /// Whether the policy needs the actions in it to name what they are done to by this program's tag.
    pub fn is_own(self) -> bool {
        matches!(
            self,
            Scope::OwnVolumes
                | Scope::OwnThings
                | Scope::WriteSnapshots
                | Scope::OwnInstances
                | Scope::OwnGroups
                | Scope::OwnRestored
        )
    }
}

/// A permission.
#[derive(Debug)]
pub struct Permission {
    /// `ec2:CreateVolume`.
    pub action: &'static str,
    /// On what.
    pub scopes: &'static [Scope],
    /// What it is for.
    pub part: Part,
    /// How bad it is without.
    pub loss: Loss,
    /// What does not work without it, for people.
    pub without: &'static str,
    /// It makes things, which get their tags at once.
    pub makes: bool,
}

/// One that makes nothing.
const fn of(
    action: &'static str,
    scopes: &'static [Scope],
    part: Part,
    loss: Loss,
    without: &'static str,
) -> Permission {
    Permission { action, scopes, part, loss, without, makes: false }
}

/// One that makes something.
const fn making(
    action: &'static str,
    scopes: &'static [Scope],
    part: Part,
    loss: Loss,
    without: &'static str,
) -> Permission {
    Permission { action, scopes, part, loss, without, makes: true }
}

const NO_INSTANCE: &str = "instances cannot be restored, only their volumes (--volumes-only)";
const NO_TRIAL: &str = "restore tests (ec2 restore --test) do not work";
const NO_DIRECT_WRITES: &str = "restores write to attached volumes only: --write direct fails";
const NO_ENCRYPTED_WRITES: &str = "snapshots with a KMS key of your own cannot be written block by block";
const KEYS: &str = "volumes with a KMS key of your own cannot be read";

/// All of them. Those that make something stand before those that tag it.
pub const PERMISSIONS: &[Permission] = &[
    of("ec2:DescribeInstances", &[Scope::Describe], Part::Always, Loss::Everything, "no instance is found"),
    of(
        "ec2:DescribeInstanceAttribute",
        &[Scope::Describe],
        Part::Always,
        Loss::Feature,
        "recovery points lack user data, the protections against termination and stop, and the shutdown behaviour",
    ),
    of("ec2:DescribeVolumes", &[Scope::Describe], Part::Always, Loss::Everything, "no volume is found"),
    of(
        "ec2:DescribeSnapshots",
        &[Scope::Describe],
        Part::Always,
        Loss::Everything,
        "nobody knows when a snapshot is complete, and which ones are anchors",
    ),
    of(
        "ec2:DescribeImages",
        &[Scope::Describe],
        Part::Always,
        Loss::Feature,
        "recovery points lack the instance's image, and --mode ami fails; images that a run left are not found",
    ),
    of(
        "ec2:GetInstanceUefiData",
        &[Scope::Describe],
        Part::Always,
        Loss::Feature,
        "recovery points of machines that boot by UEFI lack its variables: Secure Boot keys and boot entries",
    ),
    making(
        "ec2:CreateSnapshots",
        &[Scope::Snapshot],
        Part::Always,
        Loss::Everything,
        "nothing can be backed up",
    ),
    of(
        "ebs:ListSnapshotBlocks",
        &[Scope::ReadSnapshots],
        Part::Always,
        Loss::UnlessAttached,
        "first backups of volumes read what was never written, too, and only by attaching: --read direct fails",
    ),
    of(
        "ebs:ListChangedBlocks",
        &[Scope::ReadSnapshots],
        Part::Always,
        Loss::Feature,
        "backups cannot ask what changed since the last one: everything is read again, and --read direct fails",
    ),
    of(
        "ebs:GetSnapshotBlock",
        &[Scope::ReadSnapshots],
        Part::Always,
        Loss::UnlessAttached,
        "nothing is read by the EBS direct APIs: every volume is attached, and --read direct fails",
    ),
    making(
        "ec2:CreateVolume",
        &[Scope::MakeVolumes],
        Part::Volumes,
        Loss::Feature,
        "volumes cannot be attached, everything is read by the EBS direct APIs",
    ),
    of(
        "ec2:AttachVolume",
        &[Scope::AttachToProxy, Scope::OwnVolumes, Scope::AnyVolumes],
        Part::Attach,
        Loss::Feature,
        "volumes cannot be attached, everything is read by the EBS direct APIs",
    ),
    of(
        "ec2:DetachVolume",
        &[Scope::AttachToProxy, Scope::OwnVolumes, Scope::AnyVolumes],
        Part::Attach,
        Loss::CleanUp { of: "ec2:CreateVolume" },
        "volumes that were attached to be read stay attached, and cost",
    ),
    of(
        "ec2:DeleteVolume",
        &[Scope::OwnVolumes],
        Part::Volumes,
        Loss::CleanUp { of: "ec2:CreateVolume" },
        "volumes that were made to be read stay, and cost",
    ),
    making(
        "ec2:CreateImage",
        &[Scope::MakeImages],
        Part::Ami,
        Loss::Feature,
        "--mode ami, which Windows instances need, does not work",
    ),
    of(
        "ec2:DeregisterImage",
        &[Scope::OwnThings],
        Part::Images,
        Loss::Feature,
        "images of --mode ami backups that failed stay, and cost",
    ),
    of("ec2:DescribeSubnets", &[Scope::Describe], Part::Restore, Loss::Feature, NO_INSTANCE),
    of("ec2:DescribeSecurityGroups", &[Scope::Describe], Part::Restore, Loss::Feature, NO_INSTANCE),
    of("ec2:DescribeKeyPairs", &[Scope::Describe], Part::Restore, Loss::Feature, NO_INSTANCE),
    of("ec2:DescribeInstanceTypeOfferings", &[Scope::Describe], Part::Restore, Loss::Feature, NO_INSTANCE),
    of(
        "ec2:DescribeAvailabilityZones",
        &[Scope::Describe],
        Part::Restore,
        Loss::Feature,
        "volumes cannot be restored by themselves (--volumes-only)",
    ),
    of("ec2:DescribeInstanceStatus", &[Scope::Describe], Part::Restore, Loss::Feature, NO_TRIAL),
    of(
        "ec2:GetConsoleOutput",
        &[Scope::Describe],
        Part::Restore,
        Loss::Feature,
        "restore tests that fail do not show what the instance said",
    ),
    of("ebs:StartSnapshot", &[Scope::StartSnapshots], Part::Restore, Loss::Feature, NO_DIRECT_WRITES),
    of("ebs:PutSnapshotBlock", &[Scope::WriteSnapshots], Part::Restore, Loss::Feature, NO_DIRECT_WRITES),
    of("ebs:CompleteSnapshot", &[Scope::WriteSnapshots], Part::Restore, Loss::Feature, NO_DIRECT_WRITES),
    making(
        "ec2:CreateSnapshot",
        &[Scope::Snapshot],
        Part::Restore,
        Loss::Feature,
        "roots written to attached volumes do not become images: restores need --write direct",
    ),
    making(
        "ec2:RegisterImage",
        &[Scope::RegisterImages],
        Part::Restore,
        Loss::Feature,
        "no instance can be restored from its root, only from kept images or --image",
    ),
    making("ec2:RunInstances", &[Scope::Launch], Part::Restore, Loss::Feature, NO_INSTANCE),
    of(
        "ec2:TerminateInstances",
        &[Scope::OwnInstances],
        Part::Restore,
        Loss::Feature,
        "instances of restores that failed, and of restore tests, stay, and cost",
    ),
    of(
        "ec2:ModifyInstanceAttribute",
        &[Scope::OwnInstances],
        Part::Restore,
        Loss::Feature,
        "restored instances lack the protection against termination and stop that they had",
    ),
    making("ec2:CreateSecurityGroup", &[Scope::MakeGroups], Part::Restore, Loss::Feature, NO_TRIAL),
    of("ec2:RevokeSecurityGroupEgress", &[Scope::OwnGroups], Part::Restore, Loss::Feature, NO_TRIAL),
    of(
        "ec2:AuthorizeSecurityGroupIngress",
        &[Scope::OwnGroups, Scope::GroupRules],
        Part::Restore,
        Loss::Feature,
        "restore tests with --check-tcp do not work",
    ),
    of(
        "ec2:DeleteSecurityGroup",
        &[Scope::OwnGroups],
        Part::Restore,
        Loss::Feature,
        "security groups of restore tests stay",
    ),
    of(
        "iam:PassRole",
        &[Scope::PassRoles],
        Part::Restore,
        Loss::Feature,
        "instances with an instance profile are restored only without it (--iam-profile none)",
    ),
    of(
        "ec2:DeleteSnapshot",
        &[Scope::OwnThings],
        Part::Always,
        Loss::Everything,
        "snapshots stay when newer ones replace them, and cost",
    ),
    of(
        "ec2:CreateTags",
        &[Scope::TagNewThings, Scope::OwnThings, Scope::OwnRestored],
        Part::Always,
        Loss::Everything,
        "nothing is made, since nobody would know whose it is, and no snapshot becomes an anchor",
    ),
    of(
        "ec2:DeleteTags",
        &[Scope::OwnThings, Scope::OwnRestored],
        Part::Always,
        Loss::Everything,
        "no snapshot becomes an anchor, and temporary ones stay and cost",
    ),
    of("kms:Decrypt", &[Scope::ReadEncrypted], Part::Kms, Loss::Feature, KEYS),
    of("kms:DescribeKey", &[Scope::ReadEncrypted], Part::Kms, Loss::Feature, KEYS),
    of("kms:GenerateDataKeyWithoutPlaintext", &[Scope::MakeEncrypted], Part::Kms, Loss::Feature, KEYS),
    of("kms:ReEncrypt*", &[Scope::MakeEncrypted], Part::Kms, Loss::Feature, KEYS),
    of("kms:GenerateDataKey", &[Scope::ReadEncrypted], Part::RestoreKms, Loss::Feature, NO_ENCRYPTED_WRITES),
    of("kms:CreateGrant", &[Scope::Grant], Part::Kms, Loss::Feature, KEYS),
];

/// That of an action.
pub fn named(action: &str) -> Option<&'static Permission> {
    PERMISSIONS.iter().find(|p| p.action == action)
}

/// `CreateVolume` of `ec2:CreateVolume`.
pub fn call_of(action: &str) -> &str {
    action.split_once(':').map_or(action, |(_, call)| call)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_whole() {
        for scope in Scope::ALL {
            assert!(PERMISSIONS.iter().any(|p| p.scopes.contains(&scope)), "{scope:?} is of nobody");
        }
        for (n, permission) in PERMISSIONS.iter().enumerate() {
            assert!(!PERMISSIONS[..n].iter().any(|p| p.action == permission.action), "{permission:?} twice");
            if let Loss::CleanUp { of } = permission.loss {
                assert!(named(of).is_some_and(|p| p.makes));
            }
        }
        assert_eq!(call_of("ec2:CreateVolume"), "CreateVolume");
    }
}
