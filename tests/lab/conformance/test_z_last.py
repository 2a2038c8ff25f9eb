from harness import *


class Last(Case):
    """What the others have shown; runs last."""

    def test_every_operation_was_held_against_its_model(self):
        wanted = """AttachVolume DetachVolume CreateVolume DeleteVolume DescribeVolumes DescribeVolumeStatus ModifyVolume DescribeVolumesModifications CreateSnapshot
            CreateSnapshots DeleteSnapshot DescribeSnapshots CopySnapshot ModifySnapshotAttribute CreateImage RegisterImage DeregisterImage DescribeImages
            DescribeImageAttribute RunInstances DescribeInstances DescribeInstanceStatus DescribeInstanceAttribute ModifyInstanceAttribute StartInstances
            StopInstances TerminateInstances RebootInstances GetConsoleOutput GetInstanceUefiData DescribeInstanceTypes DescribeInstanceTypeOfferings CreateTags DeleteTags DescribeTags DescribeAvailabilityZones DescribeRegions
            DescribeVpcs DescribeSubnets DescribeSecurityGroups CreateSecurityGroup DeleteSecurityGroup
            AuthorizeSecurityGroupIngress AuthorizeSecurityGroupEgress RevokeSecurityGroupIngress RevokeSecurityGroupEgress DescribeKeyPairs DescribeAccountAttributes
            GetEbsEncryptionByDefault GetEbsDefaultKmsKeyId ListSnapshotBlocks ListChangedBlocks GetSnapshotBlock PutSnapshotBlock StartSnapshot
            CompleteSnapshot GetCallerIdentity AssumeRole"""
        self.assertEqual(set(wanted.split()) - checked, set())

    def test_no_parameter_went_unread(self):
        unread = {(c["action"], name) for c in lab("GET", "calls") for name in c["unread"]}
        self.assertEqual(unread, set())
