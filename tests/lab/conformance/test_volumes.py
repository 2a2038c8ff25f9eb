import glob
import mmap
import os
import time

from harness import *


def text(path):
    with open(path) as file:
        return file.read().strip()


class Volumes(Case):
    def test_life(self):
        settings(timing={"volume_ms": 300, "delete_ms": 200})
        made = ec2.create_volume(AvailabilityZone=ZONE, Size=30, VolumeType="gp3", Iops=4000, Throughput=250,
                                 TagSpecifications=specification("volume", Name="v", run="7"))
        self.assertEqual(made["State"], "creating")
        shown = ec2.describe_volumes(VolumeIds=[made["VolumeId"]])["Volumes"][0]
        self.assertEqual((shown["Size"], shown["Iops"], shown["Throughput"], shown["Encrypted"]), (30, 4000, 250, False))
        self.refused("IncorrectState", 400, ec2.attach_volume, VolumeId=made["VolumeId"], InstanceId=PROXY, Device="/dev/sdz")
        self.available(made["VolumeId"])
        ec2.delete_volume(VolumeId=made["VolumeId"])
        self.assertEqual(ec2.describe_volumes(VolumeIds=[made["VolumeId"]])["Volumes"][0]["State"], "deleting")
        until(lambda: not ec2.describe_volumes(Filters=[{"Name": "volume-id", "Values": [made["VolumeId"]]}])["Volumes"])
        self.refused("InvalidVolume.NotFound", 400, ec2.describe_volumes, VolumeIds=[made["VolumeId"]])
        self.refused("InvalidVolume.NotFound", 400, ec2.delete_volume, VolumeId=made["VolumeId"])

    def test_wrong_parameters(self):
        self.refused("InvalidZone.NotFound", 400, ec2.create_volume, AvailabilityZone="us-east-1x", Size=1)
        self.refused("MissingParameter", 400, ec2.create_volume, AvailabilityZone=ZONE)
        self.refused("InvalidParameterValue", 400, ec2.create_volume, AvailabilityZone=ZONE, Size=0)
        self.refused("InvalidParameterValue", 400, ec2.create_volume, AvailabilityZone=ZONE, Size=1, VolumeType="gp3", Throughput=5000)
        self.refused("InvalidParameterCombination", 400, ec2.create_volume, AvailabilityZone=ZONE, Size=1, VolumeType="gp2", Throughput=200)
        self.refused("InvalidSnapshot.NotFound", 400, ec2.create_volume, AvailabilityZone=ZONE, SnapshotId="snap-0123456789abcdef0")
        self.refused("InvalidParameterValue", 400, ec2.create_volume, AvailabilityZone=ZONE, Size=1,
                     TagSpecifications=specification("volume", **{"aws:x": "1"}))
        self.refused("InvalidParameterValue", 400, ec2.describe_volumes, VolumeIds=["nonsense"])
        self.refused("InvalidAction", 400, ec2.describe_addresses)

    def test_client_token(self):
        token = os.urandom(8).hex()
        ask = {"AvailabilityZone": ZONE, "Size": 1, "ClientToken": token}
        first = ec2.create_volume(**ask)["VolumeId"]
        self.assertEqual(ec2.create_volume(**ask)["VolumeId"], first)
        self.refused("IdempotentParameterMismatch", 400, ec2.create_volume, **{**ask, "Size": 2})
        self.assertNotEqual(ec2.create_volume(**{**ask, "ClientToken": token + "x"})["VolumeId"], first)

    def test_dry_run(self):
        before = lab("GET", "state")
        self.refused("DryRunOperation", 412, ec2.create_volume, AvailabilityZone=ZONE, Size=1, DryRun=True)
        self.refused("DryRunOperation", 412, ec2.describe_volumes, DryRun=True)
        self.refused("DryRunOperation", 412, ec2.terminate_instances, InstanceIds=[PROXY], DryRun=True)
        self.assertEqual(lab("GET", "state"), before)

    def test_eventual_consistency(self):
        settings(timing={"eventual_ms": 400})
        made = ec2.create_volume(AvailabilityZone=ZONE, Size=1)["VolumeId"]
        self.refused("InvalidVolume.NotFound", 400, ec2.describe_volumes, VolumeIds=[made])
        self.refused("InvalidVolume.NotFound", 400, ec2.create_tags, Resources=[made], Tags=tag(a="1"))
        time.sleep(0.5)
        self.available(made)

    def test_pages(self):
        marked = {self.volume(TagSpecifications=specification("volume", page="yes")) for _ in range(12)}
        wanted = [{"Name": "tag:page", "Values": ["yes"]}]
        for empty in (0, 2):
            settings(limits={"empty_page_every": empty})
            found, token, sizes = [], None, []
            while True:
                more = {"NextToken": token} if token else {}
                page = ec2.describe_volumes(Filters=wanted, MaxResults=5, **more)
                found += [v["VolumeId"] for v in page["Volumes"]]
                sizes.append(len(page["Volumes"]))
                token = page.get("NextToken")
                if not token:
                    break
            self.assertEqual((len(found), set(found)), (12, marked))
            self.assertEqual(0 in sizes, empty > 0, sizes)
        self.refused("InvalidParameterValue", 400, ec2.describe_volumes, MaxResults=4)
        self.refused("InvalidNextToken", 400, ec2.describe_volumes, MaxResults=5, NextToken="bm9uc2Vuc2U=")
        self.refused("InvalidParameterCombination", 400, ec2.describe_volumes, VolumeIds=[min(marked)], MaxResults=5)

    def test_filters(self):
        one = self.volume(size=7, TagSpecifications=specification("volume", filt="web-01"))
        self.volume(size=8, TagSpecifications=specification("volume", filt="db-01"))

        def found(**filters):
            asked = [{"Name": k.replace("_", "-").replace("tag-filt", "tag:filt"), "Values": v} for k, v in filters.items()]
            return [v["VolumeId"] for v in ec2.describe_volumes(Filters=asked)["Volumes"]]

        self.assertEqual(found(tag_filt=["web-*"]), [one])
        self.assertEqual(len(found(tag_filt=["web-*", "d?-01"])), 2)
        self.assertEqual(found(tag_filt=["*"], size=["7"]), [one])
        self.assertEqual(found(tag_key=["filt"], status=["creating"]), [])
        self.refused("InvalidParameterValue", 400, found, nonsense=["x"])

    def test_modify(self):
        settings(timing={"modify_ms": 200})
        volume = self.volume(size=2, VolumeType="gp2")
        change = ec2.modify_volume(VolumeId=volume, Size=40, VolumeType="gp3", Throughput=300, Iops=4000)["VolumeModification"]
        self.assertEqual((change["OriginalSize"], change["TargetSize"], change["ModificationState"]), (2, 40, "modifying"))
        self.refused("IncorrectModificationState", 400, ec2.modify_volume, VolumeId=volume, Size=50)
        until(lambda: ec2.describe_volumes_modifications(VolumeIds=[volume])["VolumesModifications"][0]["ModificationState"] == "completed")
        self.refused("InvalidParameterValue", 400, ec2.modify_volume, VolumeId=volume, Size=3)
        self.assertEqual(ec2.describe_volume_status(VolumeIds=[volume])["VolumeStatuses"][0]["VolumeStatus"]["Status"], "ok")

    def test_encryption(self):
        key = ec2.get_ebs_default_kms_key_id()["KmsKeyId"]
        self.assertFalse(ec2.get_ebs_encryption_by_default()["EbsEncryptionByDefault"])
        self.refused("InvalidParameterDependency", 400, ec2.create_volume, AvailabilityZone=ZONE, Size=1, KmsKeyId=key)
        plain = self.volume(Encrypted=True)
        self.assertEqual(ec2.describe_volumes(VolumeIds=[plain])["Volumes"][0]["KmsKeyId"], key)
        snapshot = self.snapshot(plain)
        own = key.replace(key[-12:], "0123456789ab")
        other = self.available(ec2.create_volume(AvailabilityZone=ZONE, SnapshotId=snapshot, Encrypted=True, KmsKeyId=own)["VolumeId"])
        self.assertEqual(ec2.describe_volumes(VolumeIds=[other])["Volumes"][0]["KmsKeyId"], own)
        lab("PUT", "kms/denied", [key])
        lost = ec2.create_volume(AvailabilityZone=ZONE, SnapshotId=snapshot)["VolumeId"]
        self.refused("InvalidVolume.NotFound", 400, ec2.describe_volumes, VolumeIds=[lost])
        self.assertEqual(self.refused("AccessDeniedException", 403, ebs.list_snapshot_blocks, SnapshotId=snapshot)["Reason"], "DEPENDENCY_ACCESS_DENIED")

    def test_limits(self):
        settings(limits={"volumes": 1})
        self.refused("VolumeLimitExceeded", 400, ec2.create_volume, AvailabilityZone=ZONE, Size=1)


class Attaching(Case):
    def node(self, volume):
        link = f"{os.environ['LAB_DEV']}/disk/by-id/nvme-Amazon_Elastic_Block_Store_{volume.replace('-', '')}"
        return os.path.realpath(link) if os.path.islink(link) else None

    def test_the_very_bytes_with_o_direct(self):
        settings(timing={"attach_ms": 200, "udev_ms": 200, "detach_ms": 200})
        volume = self.volume()
        self.write(volume, 5, b"by the guest" * 1000)
        answer = ec2.attach_volume(VolumeId=volume, InstanceId=PROXY, Device="/dev/sdf")
        self.assertEqual(answer["State"], "attaching")
        self.assertIsNone(self.node(volume))
        self.refused("VolumeInUse", 400, ec2.attach_volume, VolumeId=volume, InstanceId=PROXY, Device="/dev/sdg")
        until(lambda: ec2.describe_volumes(VolumeIds=[volume])["Volumes"][0]["Attachments"][0]["State"] == "attached")
        node = until(lambda: self.node(volume))
        serials = {text(f): f for f in glob.glob(f"{os.environ['LAB_SYS']}/class/nvme/*/serial")}
        controller = serials[volume.replace("-", "")].split("/")[-2]
        block = f"{os.environ['LAB_SYS']}/block/{controller}n1"
        self.assertEqual(text(f"{block}/device/serial"), volume.replace("-", ""))
        self.assertEqual(int(text(f"{block}/size")) * 512, 1 << 30)
        self.assertEqual(os.path.realpath(f"{os.environ['LAB_DEV']}/{controller}n1"), node)
        disk = os.open(node, os.O_RDWR | os.O_DIRECT)
        page = mmap.mmap(-1, 4096)
        os.preadv(disk, [page], 5 * BLOCK)
        self.assertEqual(page[:12], b"by the guest")
        page[:9] = b"by device"
        os.pwritev(disk, [page], 9 * BLOCK)
        os.close(disk)
        self.refused("VolumeInUse", 400, ec2.delete_volume, VolumeId=volume)
        snapshot = self.snapshot(volume)
        self.assertEqual([b["BlockIndex"] for b in self.blocks(snapshot)], [5, 9])
        self.assertEqual(lab("GET", f"snapshots/{snapshot}/read?offset={9 * BLOCK}&length=9"), b"by device")
        self.assertEqual(ec2.detach_volume(VolumeId=volume)["State"], "detaching")
        self.available(volume)
        self.assertIsNone(self.node(volume))
        self.refused("IncorrectState", 400, ec2.detach_volume, VolumeId=volume)

    def test_refusals(self):
        here, there = self.volume(), self.volume(AvailabilityZone="us-east-1b")
        machine, _ = self.machine()
        self.refused("InvalidVolume.ZoneMismatch", 400, ec2.attach_volume, VolumeId=there, InstanceId=machine, Device="/dev/sdf")
        self.refused("InvalidInstanceID.NotFound", 400, ec2.attach_volume, VolumeId=here, InstanceId="i-0123456789abcdef0", Device="/dev/sdf")
        self.refused("InvalidInstanceID.Malformed", 400, ec2.attach_volume, VolumeId=here, InstanceId="i-xyz", Device="/dev/sdf")
        self.refused("InvalidParameterValue", 400, ec2.attach_volume, VolumeId=here, InstanceId=machine, Device="nonsense")
        self.refused("InvalidParameterValue", 400, ec2.attach_volume, VolumeId=here, InstanceId=machine, Device="/dev/sda")
        ec2.attach_volume(VolumeId=here, InstanceId=machine, Device="/dev/sdf")
        self.refused("InvalidAttachment.NotFound", 400, ec2.detach_volume, VolumeId=here, InstanceId=PROXY)
        settings(limits={"attachments": 3})
        self.refused("AttachmentLimitExceeded", 400, ec2.attach_volume, VolumeId=self.volume(), InstanceId=machine, Device="/dev/sdg")

    def test_torn_off_while_it_is_read(self):
        volume = self.volume()
        self.write(volume, 0, b"stays")
        ec2.attach_volume(VolumeId=volume, InstanceId=PROXY, Device="/dev/sdh")
        disk = os.open(until(lambda: self.node(volume)), os.O_RDONLY | os.O_DIRECT)
        page = mmap.mmap(-1, 4096)
        self.assertEqual(os.preadv(disk, [page], 0), 4096)
        lab("POST", f"volumes/{volume}/break-off")
        try:
            read = os.preadv(disk, [page], 4096)
        except OSError:
            read = 0
        self.assertEqual(read, 0)
        os.close(disk)
        self.available(volume)
        self.assertEqual(lab("GET", f"volumes/{volume}/read?offset=0&length=5"), b"stays")
