import os
import subprocess
import sys
import time

from botocore.exceptions import ConnectionClosedError, ReadTimeoutError, EndpointConnectionError, ResponseStreamingError
from botocore.utils import InstanceMetadataFetcher, InstanceMetadataRegionFetcher

from harness import *

KEY = os.environ["AWS_ACCESS_KEY_ID"]


def policy(*statements):
    lab("PUT", f"policy/{KEY}", {"Version": "2012-10-17", "Statement": list(statements)})


class Policies(Case):
    def test_what_is_not_allowed_is_refused_in_words(self):
        volume = self.volume()
        policy({"Effect": "Allow", "Action": "ec2:Describe*", "Resource": "*"})
        ec2.describe_volumes(VolumeIds=[volume])
        error = self.refused("UnauthorizedOperation", 403, ec2.create_snapshot, VolumeId=volume, DryRun=True)
        self.assertIn("not authorized to perform: ec2:CreateSnapshot on resource: arn:aws:ec2:us-east-1:", error["Error"]["Message"])
        self.assertIn("Encoded authorization failure message", error["Error"]["Message"])
        denied = self.refused("AccessDeniedException", 403, ebs.list_snapshot_blocks, SnapshotId="snap-0123456789abcdef0")
        self.assertIn("ebs:ListSnapshotBlocks", denied["Message"])

    def test_own_tags_only(self):
        mine, other = self.volume(TagSpecifications=specification("volume", by="penstock")), self.volume()
        policy({"Effect": "Allow", "Action": ["ec2:DeleteVolume", "ec2:Describe*"], "Resource": "*", "Condition": {"StringEquals": {"aws:ResourceTag/by": "penstock"}}},
               {"Effect": "Allow", "Action": "ec2:CreateVolume", "Resource": "*", "Condition": {"StringEquals": {"aws:RequestTag/by": "penstock"}}},
               {"Effect": "Allow", "Action": "ec2:CreateTags", "Resource": "*", "Condition": {"StringEquals": {"ec2:CreateAction": "CreateVolume"}}})
        self.refused("UnauthorizedOperation", 403, ec2.delete_volume, VolumeId=other)
        ec2.delete_volume(VolumeId=mine)
        self.refused("UnauthorizedOperation", 403, ec2.create_volume, AvailabilityZone=ZONE, Size=1)
        made = ec2.create_volume(AvailabilityZone=ZONE, Size=1, TagSpecifications=specification("volume", by="penstock"))["VolumeId"]
        self.refused("UnauthorizedOperation", 403, ec2.create_tags, Resources=[made], Tags=tag(a="1"))

    def test_keys_and_roles_that_are_handed_on(self):
        key = ec2.get_ebs_default_kms_key_id()["KmsKeyId"].replace("key/", "key/own-")
        snapshot = self.snapshot(self.volume(Encrypted=True, KmsKeyId=key))
        ec2_only = {"Effect": "Allow", "Action": ["ec2:*", "ebs:*"], "Resource": "*"}
        policy(ec2_only)
        lost = ec2.create_volume(AvailabilityZone=ZONE, SnapshotId=snapshot)["VolumeId"]
        self.refused("InvalidVolume.NotFound", 400, ec2.describe_volumes, VolumeIds=[lost])
        self.assertEqual(self.refused("AccessDeniedException", 403, ebs.list_snapshot_blocks, SnapshotId=snapshot)["Reason"], "DEPENDENCY_ACCESS_DENIED")
        image = ec2.describe_images(Owners=["137112412989"])["Images"][0]["ImageId"]
        ask = dict(ImageId=image, MinCount=1, MaxCount=1, InstanceType="m5.large", IamInstanceProfile={"Name": "penstock-proxy"}, DryRun=True)
        self.assertIn("iam:PassRole", self.refused("UnauthorizedOperation", 403, ec2.run_instances, **ask)["Error"]["Message"])
        policy(ec2_only, {"Effect": "Allow", "Action": "kms:*", "Resource": key}, {"Effect": "Allow", "Action": "iam:PassRole", "Resource": "arn:aws:iam::*:role/penstock-proxy"})
        self.refused("DryRunOperation", 412, ec2.run_instances, **ask)
        self.available(ec2.create_volume(AvailabilityZone=ZONE, SnapshotId=snapshot)["VolumeId"])
        self.blocks(snapshot)

    def test_signatures(self):
        wrong = client("ec2", aws_access_key_id=KEY, aws_secret_access_key="wrong")
        self.refused("AuthFailure", 401, wrong.describe_volumes)
        nobody = client("ec2", aws_access_key_id="AKIANOBODY", aws_secret_access_key="wrong")
        self.refused("AuthFailure", 401, nobody.describe_volumes)
        wrong = client("ebs", aws_access_key_id=KEY, aws_secret_access_key="wrong")
        self.refused("InvalidSignatureException", 403, wrong.list_snapshot_blocks, SnapshotId="snap-0123456789abcdef0")


class Identities(Case):
    def test_roles(self):
        self.assertEqual(sts.get_caller_identity()["Account"], "123456789012")
        lab("PUT", "roles", {"name": "backup", "account": "210987654321", "external_id": "secret",
                             "policy": {"Statement": [{"Effect": "Allow", "Action": "ec2:DescribeRegions", "Resource": "*"}]}})
        arn = "arn:aws:iam::210987654321:role/backup"
        self.refused("AccessDenied", 403, sts.assume_role, RoleArn=arn, RoleSessionName="session", ExternalId="other")
        self.refused("AccessDenied", 403, sts.assume_role, RoleArn=arn, RoleSessionName="session")
        made = sts.assume_role(RoleArn=arn, RoleSessionName="session", ExternalId="secret", DurationSeconds=900)["Credentials"]
        keys = {"aws_access_key_id": made["AccessKeyId"], "aws_secret_access_key": made["SecretAccessKey"], "aws_session_token": made["SessionToken"]}
        self.assertEqual(client("sts", **keys).get_caller_identity()["Arn"], "arn:aws:sts::210987654321:assumed-role/backup/session")
        client("ec2", **keys).describe_regions()
        self.refused("UnauthorizedOperation", 403, client("ec2", **keys).describe_volumes)
        lab("POST", "advance?ms=901000")
        self.refused("RequestExpired", 400, client("ec2", **keys).describe_regions)

    def test_metadata(self):
        fetcher = InstanceMetadataFetcher(base_url=ENDPOINT + "/", env={})
        keys = fetcher.retrieve_iam_role_credentials()
        self.assertEqual(keys["role_name"], "penstock-proxy")
        named = client("sts", aws_access_key_id=keys["access_key"], aws_secret_access_key=keys["secret_key"], aws_session_token=keys["token"])
        self.assertTrue(named.get_caller_identity()["Arn"].endswith(f":assumed-role/penstock-proxy/{PROXY}"))
        self.assertEqual(InstanceMetadataRegionFetcher(base_url=ENDPOINT + "/", env={}).retrieve_region(), "us-east-1")
        request = urllib.request.Request(ENDPOINT + "/latest/api/token", method="PUT", headers={"X-aws-ec2-metadata-token-ttl-seconds": "60"})
        with urllib.request.urlopen(request) as answer:
            token = answer.read().decode()

        def get(path, token):
            request = urllib.request.Request(f"{ENDPOINT}/latest/{path}", headers={"X-aws-ec2-metadata-token": token} if token else {})
            with urllib.request.urlopen(request) as answer:
                return answer.read().decode()

        self.assertEqual(get("meta-data/instance-id", token), PROXY)
        self.assertEqual(get("meta-data/placement/availability-zone", token), ZONE)
        document = json.loads(get("dynamic/instance-identity/document", token))
        self.assertEqual((document["instanceId"], document["region"]), (PROXY, "us-east-1"))
        for path, with_token, status in (("meta-data/instance-id", None, 401), ("meta-data/nonsense", token, 404)):
            with self.assertRaises(urllib.error.HTTPError) as caught:
                get(path, with_token)
            self.assertEqual(caught.exception.code, status)
            caught.exception.close()


class Quotas(Case):
    def test_buckets(self):
        lab("POST", "quotas/refill")
        volume = self.volume()
        self.write(volume, 0, b"x")
        snapshot = self.snapshot(volume)
        settings(quotas={"ec2_read": {"burst": 3, "per_second": 0.5}, "list": {"burst": 2, "per_second": 0.1}})
        for _ in range(3):
            ec2.describe_volumes(VolumeIds=[volume])
        self.refused("RequestLimitExceeded", 503, ec2.describe_volumes, VolumeIds=[volume])
        time.sleep(2.1)
        ec2.describe_volumes(VolumeIds=[volume])
        for _ in range(2):
            ebs.list_snapshot_blocks(SnapshotId=snapshot)
        self.assertEqual(self.refused("RequestThrottledException", 400, ebs.list_snapshot_blocks, SnapshotId=snapshot)["Reason"], "ACCOUNT_THROTTLED")
        settings(quotas={"list": {"burst": 0, "per_second": 0}, "get_per_snapshot": {"burst": 1, "per_second": 0.1}})
        token = self.blocks(snapshot)[0]["BlockToken"]
        ebs.get_snapshot_block(SnapshotId=snapshot, BlockIndex=0, BlockToken=token)["BlockData"].read()
        error = self.refused("RequestThrottledException", 400, ebs.get_snapshot_block, SnapshotId=snapshot, BlockIndex=0, BlockToken=token)
        self.assertEqual(error["Reason"], "RESOURCE_LEVEL_THROTTLE")


class Faults(Case):
    def test_refusals(self):
        lab("PUT", "faults", [{"action": "DescribeVolumes", "times": 1, "fault": "throttle"}, {"action": "DescribeVolumes", "times": 1, "fault": "server-error"},
                              {"action": "DescribeVolumes", "times": 1, "fault": "server-error", "status": 503},
                              {"action": "AttachVolume", "fault": "refuse", "status": 400, "code": "AttachmentLimitExceeded", "message": "full"}])
        self.refused("RequestLimitExceeded", 503, ec2.describe_volumes)
        self.refused("InternalError", 500, ec2.describe_volumes)
        self.refused("Unavailable", 503, ec2.describe_volumes)
        ec2.describe_volumes()
        self.refused("AttachmentLimitExceeded", 400, ec2.attach_volume, VolumeId="vol-0123456789abcdef0", InstanceId=PROXY, Device="/dev/sdf")
        self.assertEqual(lab("GET", "faults"), [1, 1, 1, 1])

    def test_lost_replies_and_client_tokens(self):
        token = os.urandom(8).hex()
        lab("PUT", "faults", [{"action": "CreateVolume", "times": 1, "fault": "lost-reply"}])
        ask = {"AvailabilityZone": ZONE, "Size": 1, "ClientToken": token, "TagSpecifications": specification("volume", lost=token)}
        with self.assertRaises(ConnectionClosedError):
            ec2.create_volume(**ask)
        made = ec2.create_volume(**ask)["VolumeId"]
        found = ec2.describe_volumes(Filters=[{"Name": "tag:lost", "Values": [token]}])["Volumes"]
        self.assertEqual([v["VolumeId"] for v in found], [made])

    def test_hang_and_drop(self):
        lab("PUT", "faults", [{"action": "DescribeRegions", "times": 1, "fault": "hang", "ms": 300},
                              {"action": "DescribeRegions", "times": 1, "fault": "drop"},
                              {"action": "DescribeRegions", "times": 1, "fault": "truncate"}, {"action": "DescribeRegions", "times": 1, "fault": "delay", "ms": 300}])
        for _ in range(3):
            with self.assertRaises(Exception) as caught:
                ec2.describe_regions()
            self.assertIsInstance(caught.exception, (ConnectionClosedError, ReadTimeoutError, EndpointConnectionError, ResponseStreamingError), caught.exception)
        began = time.monotonic()
        ec2.describe_regions()
        self.assertGreater(time.monotonic() - began, 0.3)

    def test_damage(self):
        volume = self.volume()
        self.write(volume, 0, b"x")
        snapshot = self.snapshot(volume)
        block = self.blocks(snapshot)[0]
        lab("PUT", "faults", [{"action": "GetSnapshotBlock", "naming": snapshot, "times": 1, "fault": "corrupt"}])
        got = [ebs.get_snapshot_block(SnapshotId=snapshot, **block) for _ in range(2)]
        self.assertEqual([sha(g["BlockData"].read()) == g["Checksum"] for g in got], [False, True])

    def test_snapshots_that_end_in_error(self):
        volume = self.volume()
        lab("PUT", "faults", [{"action": "CreateSnapshot", "fault": "ends-in-error"}])
        made = ec2.create_snapshot(VolumeId=volume)["SnapshotId"]
        shown = until(lambda: [s for s in ec2.describe_snapshots(SnapshotIds=[made])["Snapshots"] if s["State"] == "error"])[0]
        self.assertTrue(shown["StateMessage"])

    def test_shares_repeat(self):
        def run():
            lab("PUT", "faults", [{"action": "Describe*", "share": 0.3, "fault": "throttle"}])
            outcome = []
            for _ in range(30):
                try:
                    ec2.describe_regions()
                    outcome.append(True)
                except ClientError:
                    outcome.append(False)
            return outcome

        first = run()
        self.assertEqual(first, run())
        self.assertTrue(3 <= first.count(False) <= 18, first)


class CommandLine(Case):
    def aws(self, *words):
        done = subprocess.run([os.path.join(os.path.dirname(sys.executable), "aws"), *words, "--output", "json"], capture_output=True, text=True, timeout=60)
        self.assertEqual(done.returncode, 0, done.stderr)
        return json.loads(done.stdout) if done.stdout.strip() else None

    def test_a_volume_there_and_back(self):
        volume = self.aws("ec2", "create-volume", "--availability-zone", ZONE, "--size", "1", "--tag-specifications", "ResourceType=volume,Tags=[{Key=cli,Value=yes}]")["VolumeId"]
        self.aws("ec2", "wait", "volume-available", "--volume-ids", volume)
        self.write(volume, 2, b"by the command line")
        snapshot = self.aws("ec2", "create-snapshot", "--volume-id", volume)["SnapshotId"]
        self.aws("ec2", "wait", "snapshot-completed", "--snapshot-ids", snapshot)
        blocks = self.aws("ebs", "list-snapshot-blocks", "--snapshot-id", snapshot)["Blocks"]
        path = os.path.join(os.environ["LAB_DEV"], "..", "block.bin")
        self.aws("ebs", "get-snapshot-block", "--snapshot-id", snapshot, "--block-index", "2", "--block-token", blocks[0]["BlockToken"], path)
        with open(path, "rb") as file:
            self.assertEqual(file.read(19), b"by the command line")
        os.remove(path)
        self.assertEqual(self.aws("ec2", "describe-volumes", "--filters", "Name=tag:cli,Values=yes")["Volumes"][0]["VolumeId"], volume)
