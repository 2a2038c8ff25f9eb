import os
import time

from harness import *


class Snapshots(Case):
    def test_life(self):
        settings(timing={"snapshot_ms": 400})
        volume = self.volume(size=2)
        made = ec2.create_snapshot(VolumeId=volume, Description="d <&>", TagSpecifications=specification("snapshot", a="1"))
        seen = set()

        def done():
            shown = ec2.describe_snapshots(SnapshotIds=[made["SnapshotId"]])["Snapshots"][0]
            seen.add((shown["State"], shown["Progress"]))
            return shown["State"] == "completed" and shown

        shown = until(done)
        self.assertGreater(len([s for s in seen if s[0] == "pending"]), 1, seen)
        self.assertEqual((shown["Progress"], shown["VolumeSize"], shown["Description"], shown["Tags"]), ("100%", 2, "d <&>", tag(a="1")))
        ec2.modify_snapshot_attribute(SnapshotId=made["SnapshotId"], Attribute="createVolumePermission", OperationType="add", UserIds=["111122223333"])
        ec2.delete_snapshot(SnapshotId=made["SnapshotId"])
        self.refused("InvalidSnapshot.NotFound", 400, ec2.describe_snapshots, SnapshotIds=[made["SnapshotId"]])
        self.refused("InvalidSnapshot.NotFound", 400, ec2.delete_snapshot, SnapshotId=made["SnapshotId"])
        self.refused("InvalidSnapshotID.Malformed", 400, ec2.delete_snapshot, SnapshotId="snap-1")

    def test_pending_snapshots_are_no_good_yet(self):
        settings(timing={"snapshot_ms": 60000})
        made = ec2.create_snapshot(VolumeId=self.volume())["SnapshotId"]
        self.refused("IncorrectState", 400, ec2.create_volume, AvailabilityZone=ZONE, SnapshotId=made)
        self.refused("ValidationException", 400, ebs.list_snapshot_blocks, SnapshotId=made)
        lab("POST", "advance?ms=60000")
        self.assertEqual(self.blocks(made), [])

    def test_eventual_consistency_of_both_apis(self):
        volume = self.volume()
        settings(timing={"eventual_ms": 400, "snapshot_ms": 0})
        made = ec2.create_snapshot(VolumeId=volume)["SnapshotId"]
        self.refused("InvalidSnapshot.NotFound", 400, ec2.describe_snapshots, SnapshotIds=[made])
        self.assertEqual(self.refused("ResourceNotFoundException", 404, ebs.list_snapshot_blocks, SnapshotId=made)["Reason"], "SNAPSHOT_NOT_FOUND")
        time.sleep(0.5)
        self.blocks(self.completed(made))

    def test_rates(self):
        volume = self.volume()
        settings(limits={"snapshot_interval_ms": 10000, "pending_per_volume": 2}, timing={"snapshot_ms": 3000})
        ec2.create_snapshot(VolumeId=volume)
        self.refused("SnapshotCreationPerVolumeRateExceeded", 400, ec2.create_snapshot, VolumeId=volume)
        settings(limits={"snapshot_interval_ms": 0})
        ec2.create_snapshot(VolumeId=volume)
        self.refused("ConcurrentSnapshotLimitExceeded", 400, ec2.create_snapshot, VolumeId=volume)

    def test_sets(self):
        machine, volumes = self.machine({"size_gib": 1}, {"size_gib": 1}, {"size_gib": 1, "tags": {"from": "volume"}})
        for index, volume in enumerate(volumes):
            self.write(volume, index, b"%d" % index * 4096)
        made = ec2.create_snapshots(InstanceSpecification={"InstanceId": machine, "ExcludeDataVolumeIds": [volumes[1]]}, Description="set",
                                    CopyTagsFromSource="volume", TagSpecifications=specification("snapshot", run="r"))["Snapshots"]
        self.assertEqual({s["VolumeId"] for s in made}, {volumes[0], volumes[2]})
        self.assertEqual({s["State"] for s in made}, {"pending"})
        of_data = next(s for s in made if s["VolumeId"] == volumes[2])
        self.assertEqual(sorted(t["Key"] for t in of_data["Tags"]), ["from", "run"])
        self.assertEqual([b["BlockIndex"] for b in self.blocks(self.completed(of_data["SnapshotId"]))], [2])
        without = ec2.create_snapshots(InstanceSpecification={"InstanceId": machine, "ExcludeBootVolume": True})["Snapshots"]
        self.assertEqual({s["VolumeId"] for s in without}, set(volumes[1:]))
        self.refused("InvalidParameterValue", 400, ec2.create_snapshots, InstanceSpecification={"InstanceId": machine, "ExcludeDataVolumeIds": [volumes[0]]})

    def test_listing(self):
        volume = self.volume()
        mine = [self.snapshot(volume, TagSpecifications=specification("snapshot", list="me")) for _ in range(6)]
        pages = ec2.get_paginator("describe_snapshots").paginate(OwnerIds=["self"], Filters=[{"Name": "tag:list", "Values": ["me"]}], PaginationConfig={"PageSize": 5})
        self.assertEqual([s["SnapshotId"] for p in pages for s in p["Snapshots"]], sorted(mine))
        found = ec2.describe_snapshots(OwnerIds=["999999999999"], Filters=[{"Name": "tag:list", "Values": ["me"]}])["Snapshots"]
        self.assertEqual(found, [])
        found = ec2.describe_snapshots(Filters=[{"Name": "volume-id", "Values": [volume]}, {"Name": "status", "Values": ["completed"]}])["Snapshots"]
        self.assertEqual(len(found), 6)

    def test_copies_carry_the_blocks(self):
        volume = self.volume()
        self.write(volume, 1, b"copied")
        source = self.snapshot(volume)
        west = client("ec2", region_name="us-west-2")
        copy = west.copy_snapshot(SourceRegion="us-east-1", SourceSnapshotId=source, TagSpecifications=specification("snapshot", c="1"), Encrypted=True)
        self.refused("InvalidSnapshot.NotFound", 400, ec2.describe_snapshots, SnapshotIds=[copy["SnapshotId"]])
        shown = until(lambda: [s for s in west.describe_snapshots(SnapshotIds=[copy["SnapshotId"]])["Snapshots"] if s["State"] == "completed"])[0]
        self.assertTrue(shown["Encrypted"] and ":us-west-2:" in shown["KmsKeyId"], shown)
        listed = client("ebs", region_name="us-west-2").list_snapshot_blocks(SnapshotId=copy["SnapshotId"])
        self.assertEqual([b["BlockIndex"] for b in listed["Blocks"]], [1])
        here = ec2.copy_snapshot(SourceRegion="us-east-1", SourceSnapshotId=source)["SnapshotId"]
        self.completed(here)
        error = self.refused("ValidationException", 400, ebs.list_changed_blocks, FirstSnapshotId=source, SecondSnapshotId=here)
        self.assertEqual(error["Reason"], "UNRELATED_SNAPSHOTS")


class Reading(Case):
    def test_lineage(self):
        volume = self.volume()
        self.write(volume, 1, b"one" * 1000)
        self.write(volume, 2, b"two" * 1000)
        first = self.snapshot(volume)
        self.write(volume, 2, b"TWO" * 1000)
        self.write(volume, 7, b"new")
        second = self.snapshot(volume)
        listed = ebs.list_snapshot_blocks(SnapshotId=first)
        self.assertEqual((listed["VolumeSize"], listed["BlockSize"]), (1, BLOCK))
        self.assertEqual([b["BlockIndex"] for b in listed["Blocks"]], [1, 2])
        changed = ebs.list_changed_blocks(FirstSnapshotId=first, SecondSnapshotId=second)["ChangedBlocks"]
        self.assertEqual([(c["BlockIndex"], "FirstBlockToken" in c, "SecondBlockToken" in c) for c in changed], [(2, True, True), (7, False, True)])
        old = ebs.get_snapshot_block(SnapshotId=first, BlockIndex=2, BlockToken=changed[0]["FirstBlockToken"])
        data = old["BlockData"].read()
        self.assertEqual((data[:3], old["DataLength"], old["Checksum"], old["ChecksumAlgorithm"]), (b"two", BLOCK, sha(data), "SHA256"))
        # a volume made of the snapshot, and its snapshots, belong to the lineage
        child = self.available(ec2.create_volume(AvailabilityZone=ZONE, SnapshotId=second)["VolumeId"])
        self.write(child, 9, b"child")
        third = self.snapshot(child)
        changed = ebs.list_changed_blocks(FirstSnapshotId=first, SecondSnapshotId=third)["ChangedBlocks"]
        self.assertEqual([c["BlockIndex"] for c in changed], [2, 7, 9])
        stranger = self.snapshot(self.volume())
        error = self.refused("ValidationException", 400, ebs.list_changed_blocks, FirstSnapshotId=first, SecondSnapshotId=stranger)
        self.assertEqual(error["Reason"], "UNRELATED_SNAPSHOTS")

    def test_zeros_that_were_written_are_listed(self):
        volume = self.volume()
        self.write(volume, 3, b"x")
        self.snapshot(volume)
        self.write(volume, 3, bytes(BLOCK))
        self.assertEqual([b["BlockIndex"] for b in self.blocks(self.snapshot(volume))], [3])

    def test_tokens(self):
        volume = self.volume()
        self.write(volume, 1, b"x")
        self.write(volume, 2, b"y")
        snapshot = self.snapshot(volume)
        first = self.blocks(snapshot)
        time.sleep(0.01)
        self.assertNotEqual(first[0]["BlockToken"], self.blocks(snapshot)[0]["BlockToken"])

        def get(index, token):
            return ebs.get_snapshot_block(SnapshotId=snapshot, BlockIndex=index, BlockToken=token)

        get(1, first[0]["BlockToken"])
        for index, token in ((1, first[1]["BlockToken"]), (1, "bm9uc2Vuc2U=")):
            self.assertEqual(self.refused("ValidationException", 400, get, index, token)["Reason"], "INVALID_BLOCK_TOKEN")
        lab("POST", f"advance?ms={7 * 24 * 3600 * 1000 + 1000}")
        self.assertEqual(self.refused("ValidationException", 400, get, 1, first[0]["BlockToken"])["Reason"], "INVALID_BLOCK_TOKEN")

    def test_pages(self):
        volume = self.volume()
        for index in range(0, 500, 2):
            self.write(volume, index, b"p")
        snapshot = self.snapshot(volume)
        settings(limits={"empty_page_every": 2})
        found, more, sizes = [], {}, []
        while True:
            page = ebs.list_snapshot_blocks(SnapshotId=snapshot, MaxResults=100, StartingBlockIndex=100, **more)
            found += [b["BlockIndex"] for b in page["Blocks"]]
            sizes.append(len(page["Blocks"]))
            if "NextToken" not in page:
                break
            more = {"NextToken": page["NextToken"]}
        self.assertEqual(found, list(range(100, 500, 2)))
        self.assertIn(0, sizes)
        token = ebs.list_snapshot_blocks(SnapshotId=snapshot, MaxResults=100)["NextToken"]
        lab("POST", "advance?ms=3601000")
        error = self.refused("ValidationException", 400, ebs.list_snapshot_blocks, SnapshotId=snapshot, NextToken=token)
        self.assertEqual(error["Reason"], "INVALID_PAGE_TOKEN")
        loose = client("ebs", validate=False)
        self.refused("ValidationException", 400, loose.list_snapshot_blocks, SnapshotId=snapshot, MaxResults=99)
        self.refused("ResourceNotFoundException", 404, ebs.list_snapshot_blocks, SnapshotId="snap-0123456789abcdef0")


class Writing(Case):
    def put(self, snapshot, index, data, **more):
        ask = {"SnapshotId": snapshot, "BlockIndex": index, "BlockData": data, "DataLength": len(data), "Checksum": sha(data), "ChecksumAlgorithm": "SHA256"}
        return ebs.put_snapshot_block(**{**ask, **more})

    def test_a_snapshot_with_a_parent(self):
        volume = self.volume()
        self.write(volume, 0, b"kept")
        self.write(volume, 1, b"lost")
        parent = self.snapshot(volume)
        made = ebs.start_snapshot(VolumeSize=1, ParentSnapshotId=parent, Tags=tag(a="b"), Description="restore", Timeout=10)
        snapshot = made["SnapshotId"]
        self.assertEqual((made["Status"], made["ParentSnapshotId"], made["BlockSize"]), ("pending", parent, BLOCK))
        blocks = {5: b"5" * BLOCK, 1: b"1" * BLOCK}
        for index, data in blocks.items():
            self.assertEqual(self.put(snapshot, index, data, Progress=50)["Checksum"], sha(data))
        self.refused("ValidationException", 400, ebs.complete_snapshot, SnapshotId=snapshot, ChangedBlocksCount=3)
        digests = b"".join(hashlib.sha256(blocks[i]).digest() for i in sorted(blocks))
        seal = {"ChecksumAlgorithm": "SHA256", "ChecksumAggregationMethod": "LINEAR"}
        self.refused("ValidationException", 400, ebs.complete_snapshot, SnapshotId=snapshot, ChangedBlocksCount=2, Checksum=sha(b"wrong"), **seal)
        done = ebs.complete_snapshot(SnapshotId=snapshot, ChangedBlocksCount=2, Checksum=sha(digests), **seal)
        self.assertEqual(done["Status"], "pending")
        self.completed(snapshot)
        self.refused("ValidationException", 400, self.put, snapshot, 1, blocks[1])
        changed = ebs.list_changed_blocks(FirstSnapshotId=parent, SecondSnapshotId=snapshot)["ChangedBlocks"]
        self.assertEqual([c["BlockIndex"] for c in changed], [1, 5])
        made = self.available(ec2.create_volume(AvailabilityZone=ZONE, SnapshotId=snapshot)["VolumeId"])
        self.assertEqual(lab("GET", f"volumes/{made}/read?offset=0&length=4"), b"kept")
        self.assertEqual(lab("GET", f"volumes/{made}/read?offset={5 * BLOCK - 2}&length=4"), b"\0\x0055")

    def test_refusals(self):
        snapshot = ebs.start_snapshot(VolumeSize=1)["SnapshotId"]
        data = b"z" * BLOCK
        self.refused("ValidationException", 400, self.put, snapshot, 0, data, Checksum=sha(b"other"))
        self.refused("ValidationException", 400, self.put, snapshot, 0, data[:-1])
        self.assertEqual(self.refused("ValidationException", 400, self.put, snapshot, 2048, data)["Reason"], "INVALID_BLOCK")
        self.refused("ResourceNotFoundException", 404, self.put, "snap-0123456789abcdef0", 0, data)
        parent = self.snapshot(self.volume(size=2))
        self.refused("ValidationException", 400, ebs.start_snapshot, VolumeSize=2, ParentSnapshotId=parent, Encrypted=True)
        self.assertEqual(self.refused("ValidationException", 400, ebs.start_snapshot, VolumeSize=1, ParentSnapshotId=parent)["Reason"], "INVALID_VOLUME_SIZE")
        self.assertEqual(self.refused("ValidationException", 400, ebs.start_snapshot, VolumeSize=1, Tags=tag(**{"aws:a": "1"}))["Reason"], "INVALID_TAG")

    def test_client_token(self):
        token = os.urandom(8).hex()
        first = ebs.start_snapshot(VolumeSize=1, ClientToken=token)["SnapshotId"]
        self.assertEqual(ebs.start_snapshot(VolumeSize=1, ClientToken=token)["SnapshotId"], first)
        self.refused("ConflictException", 409, ebs.start_snapshot, VolumeSize=2, ClientToken=token)

    def test_it_fails_when_nothing_comes(self):
        snapshot = ebs.start_snapshot(VolumeSize=1, Timeout=10)["SnapshotId"]
        lab("POST", "advance?ms=540000")
        self.put(snapshot, 0, b"a" * BLOCK)
        lab("POST", "advance?ms=540000")
        self.put(snapshot, 1, b"a" * BLOCK)
        lab("POST", "advance?ms=600001")
        self.refused("ValidationException", 400, self.put, snapshot, 2, b"a" * BLOCK)
        self.assertEqual(ec2.describe_snapshots(SnapshotIds=[snapshot])["Snapshots"][0]["State"], "error")

    def test_pending_limit(self):
        lab("POST", "advance?ms=3600001")
        settings(limits={"pending_snapshots": 1})
        ebs.start_snapshot(VolumeSize=1)
        self.refused("ConcurrentLimitExceededException", 400, ebs.start_snapshot, VolumeSize=1)
