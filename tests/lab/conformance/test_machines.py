import base64
import os

from harness import *


class Images(Case):
    def test_made_of_an_instance(self):
        machine, volumes = self.machine({"size_gib": 1}, {"size_gib": 2, "delete_on_termination": False}, boot_mode="uefi")
        self.write(volumes[0], 0, b"root")
        self.write(volumes[1], 3, b"data")
        settings(timing={"image_ms": 300, "snapshot_ms": 400})
        made = ec2.create_image(InstanceId=machine, Name=f"of {machine}", Description="night", NoReboot=True,
                                TagSpecifications=specification("image", a="1") + specification("snapshot", b="2"))["ImageId"]
        shown = ec2.describe_images(ImageIds=[made])["Images"][0]
        self.assertEqual((shown["State"], shown["BootMode"], shown["SourceInstanceId"]), ("pending", "uefi", machine))
        self.refused("InvalidAMIID.Unavailable", 400, ec2.run_instances, ImageId=made, MinCount=1, MaxCount=1, InstanceType="m5.large")
        shown = until(lambda: [i for i in ec2.describe_images(Owners=["self"], Filters=[{"Name": "image-id", "Values": [made]}])["Images"] if i["State"] == "available"])[0]
        ebs_of = {m["DeviceName"]: m["Ebs"] for m in shown["BlockDeviceMappings"]}
        self.assertEqual(sorted(ebs_of), ["/dev/sdf", "/dev/xvda"])
        self.assertEqual((ebs_of["/dev/sdf"]["VolumeSize"], ebs_of["/dev/sdf"]["DeleteOnTermination"]), (2, False))
        snapshot = ebs_of["/dev/sdf"]["SnapshotId"]
        self.assertEqual(ec2.describe_snapshots(SnapshotIds=[snapshot])["Snapshots"][0]["Tags"], tag(b="2"))
        self.refused("InvalidSnapshot.InUse", 400, ec2.delete_snapshot, SnapshotId=snapshot)
        self.refused("InvalidAMIName.Duplicate", 400, ec2.create_image, InstanceId=machine, Name=f"of {machine}")
        new = ec2.run_instances(ImageId=made, MinCount=1, MaxCount=1, InstanceType="m5.large")["Instances"][0]["InstanceId"]
        until(lambda: ec2.describe_instances(InstanceIds=[new])["Reservations"][0]["Instances"][0]["State"]["Name"] == "running")
        shown = ec2.describe_instances(InstanceIds=[new])["Reservations"][0]["Instances"][0]
        of = {m["DeviceName"]: m["Ebs"]["VolumeId"] for m in shown["BlockDeviceMappings"]}
        self.assertEqual(lab("GET", f"volumes/{of['/dev/xvda']}/read?offset=0&length=4"), b"root")
        self.assertEqual(lab("GET", f"volumes/{of['/dev/sdf']}/read?offset={3 * BLOCK}&length=4"), b"data")
        ec2.deregister_image(ImageId=made)
        self.refused("InvalidAMIID.NotFound", 400, ec2.describe_images, ImageIds=[made])
        ec2.delete_snapshot(SnapshotId=snapshot)
        settings(timing={"instance_ms": 100})
        ec2.terminate_instances(InstanceIds=[new])
        until(lambda: ec2.describe_instances(InstanceIds=[new])["Reservations"][0]["Instances"][0]["State"]["Name"] == "terminated")
        self.refused("InvalidVolume.NotFound", 400, ec2.describe_volumes, VolumeIds=[of["/dev/xvda"]])
        self.assertEqual(ec2.describe_volumes(VolumeIds=[of["/dev/sdf"]])["Volumes"][0]["State"], "available")

    def test_registered(self):
        volume = self.volume()
        self.write(volume, 0, b"boot")
        snapshot = self.snapshot(volume)
        root = {"DeviceName": "/dev/xvda", "Ebs": {"SnapshotId": snapshot, "VolumeType": "gp3", "DeleteOnTermination": True}}
        ask = {"Name": f"r {snapshot}", "RootDeviceName": "/dev/xvda", "BlockDeviceMappings": [root]}
        # what AWS takes when nothing is said does not boot on machines of today
        old = ec2.register_image(**ask)["ImageId"]
        shown = until(lambda: [i for i in ec2.describe_images(ImageIds=[old])["Images"] if i["State"] == "available"])[0]
        self.assertEqual((shown["Architecture"], shown["VirtualizationType"]), ("i386", "paravirtual"))
        self.refused("InvalidParameterValue", 400, ec2.run_instances, ImageId=old, MinCount=1, MaxCount=1, InstanceType="m5.large")
        full = {**ask, "Name": ask["Name"] + " full", "Architecture": "x86_64", "VirtualizationType": "hvm", "EnaSupport": True, "BootMode": "uefi",
                "TpmSupport": "v2.0", "UefiData": "QU1aTlVFRkk=", "ImdsSupport": "v2.0", "SriovNetSupport": "simple", "Description": "d"}
        new = ec2.register_image(**full, TagSpecifications=specification("image", c="3"))["ImageId"]
        shown = until(lambda: [i for i in ec2.describe_images(ImageIds=[new])["Images"] if i["State"] == "available"])[0]
        self.assertEqual((shown["TpmSupport"], shown["ImdsSupport"], shown["BlockDeviceMappings"][0]["Ebs"]["VolumeSize"]), ("v2.0", "v2.0", 1))
        self.assertEqual(ec2.describe_image_attribute(ImageId=new, Attribute="uefiData")["UefiData"]["Value"], "QU1aTlVFRkk=")
        self.assertEqual(ec2.describe_image_attribute(ImageId=new, Attribute="description")["Description"]["Value"], "d")
        self.assertEqual(ec2.describe_image_attribute(ImageId=new, Attribute="launchPermission")["LaunchPermissions"], [])
        ena = ec2.register_image(**{**full, "Name": ask["Name"] + " no ena", "EnaSupport": False})["ImageId"]
        until(lambda: ec2.describe_images(ImageIds=[ena])["Images"][0]["State"] == "available")
        self.refused("InvalidParameterCombination", 400, ec2.run_instances, ImageId=ena, MinCount=1, MaxCount=1, InstanceType="m5.large")
        self.refused("InvalidBlockDeviceMapping", 400, ec2.register_image, Name="no root", RootDeviceName="/dev/sda1", BlockDeviceMappings=[root])
        self.refused("InvalidAMIName.Malformed", 400, ec2.register_image, **{**ask, "Name": "a$b"})
        results = ec2.deregister_image(ImageId=new, DeleteAssociatedSnapshots=True)
        self.assertEqual(results["DeleteSnapshotResults"], [{"SnapshotId": snapshot, "ReturnCode": "skipped"}])


class Instances(Case):
    def image(self):
        volume = self.volume()
        self.write(volume, 0, b"boot")
        snapshot = self.snapshot(volume)
        made = ec2.register_image(Name=f"i {snapshot}", RootDeviceName="/dev/xvda", Architecture="x86_64", VirtualizationType="hvm", EnaSupport=True,
                                  BlockDeviceMappings=[{"DeviceName": "/dev/xvda", "Ebs": {"SnapshotId": snapshot}},
                                                       {"DeviceName": "/dev/sdb", "VirtualName": "ephemeral0"}])["ImageId"]
        until(lambda: ec2.describe_images(ImageIds=[made])["Images"][0]["State"] == "available")
        return made

    def state(self, instance):
        return ec2.describe_instances(InstanceIds=[instance])["Reservations"][0]["Instances"][0]["State"]["Name"]

    def test_launched_with_all_choices(self):
        settings(timing={"instance_ms": 200, "checks_ms": 200})
        image = self.image()
        subnet = next(s for s in ec2.describe_subnets()["Subnets"] if s["AvailabilityZone"] == "us-east-1b")
        group = ec2.create_security_group(GroupName=os.urandom(4).hex(), Description="d", VpcId=subnet["VpcId"], TagSpecifications=specification("security-group", g="1"))["GroupId"]
        self.machine(key_name="ops", profile="web-role")
        address = subnet["CidrBlock"].split("/")[0].rsplit(".", 1)[0] + ".77"
        token = os.urandom(8).hex()
        ask = dict(ImageId=image, MinCount=1, MaxCount=1, InstanceType="m5.large", KeyName="ops", ClientToken=token, UserData="#!/bin/sh\n",
                   IamInstanceProfile={"Name": "web-role"}, SubnetId=subnet["SubnetId"], SecurityGroupIds=[group], PrivateIpAddress=address,
                   EbsOptimized=True, Monitoring={"Enabled": True}, DisableApiTermination=True, InstanceInitiatedShutdownBehavior="terminate",
                   MetadataOptions={"HttpTokens": "required", "HttpPutResponseHopLimit": 2, "HttpEndpoint": "enabled"},
                   Placement={"Tenancy": "default", "AvailabilityZone": "us-east-1b"},
                   BlockDeviceMappings=[{"DeviceName": "/dev/xvda", "Ebs": {"VolumeSize": 3, "VolumeType": "gp3", "DeleteOnTermination": False}},
                                        {"DeviceName": "/dev/sdf", "Ebs": {"VolumeSize": 2}}],
                   TagSpecifications=specification("instance", Name="n") + specification("volume", v="1"))
        made = ec2.run_instances(**ask)["Instances"][0]
        self.assertEqual(ec2.run_instances(**ask)["Instances"][0]["InstanceId"], made["InstanceId"])
        self.refused("IdempotentParameterMismatch", 400, ec2.run_instances, **{**ask, "InstanceType": "m5.xlarge"})
        instance = made["InstanceId"]
        self.assertEqual(self.state(instance), "pending")
        until(lambda: self.state(instance) == "running")
        until(lambda: ec2.describe_instance_status(InstanceIds=[instance])["InstanceStatuses"][0]["InstanceStatus"]["Status"] == "ok")
        shown = ec2.describe_instances(InstanceIds=[instance])["Reservations"][0]["Instances"][0]
        self.assertEqual((shown["PrivateIpAddress"], shown["KeyName"], shown["Placement"]["AvailabilityZone"]), (address, "ops", "us-east-1b"))
        self.assertEqual(shown["SecurityGroups"][0]["GroupId"], group)
        self.assertEqual(shown["MetadataOptions"]["HttpTokens"], "required")
        self.assertTrue(shown["IamInstanceProfile"]["Arn"].endswith("/web-role"))
        volumes = {v["Attachments"][0]["Device"]: v for v in ec2.describe_volumes(Filters=[{"Name": "attachment.instance-id", "Values": [instance]}])["Volumes"]}
        self.assertEqual({d: (v["Size"], v["VolumeType"], v["Tags"]) for d, v in volumes.items()},
                         {"/dev/xvda": (3, "gp3", tag(v="1")), "/dev/sdf": (2, "gp2", tag(v="1"))})
        read = lambda name: ec2.describe_instance_attribute(InstanceId=instance, Attribute=name)
        self.assertEqual(base64.b64decode(read("userData")["UserData"]["Value"]), b"#!/bin/sh\n")
        self.assertTrue(read("disableApiTermination")["DisableApiTermination"]["Value"])
        self.assertEqual(read("instanceInitiatedShutdownBehavior")["InstanceInitiatedShutdownBehavior"]["Value"], "terminate")
        for name in ("instanceType", "kernel", "ramdisk", "rootDeviceName", "blockDeviceMapping", "productCodes", "sourceDestCheck", "groupSet", "ebsOptimized", "sriovNetSupport", "enaSupport", "enclaveOptions", "disableApiStop"):
            read(name)
        self.refused("OperationNotPermitted", 400, ec2.terminate_instances, InstanceIds=[instance])
        ec2.modify_instance_attribute(InstanceId=instance, DisableApiTermination={"Value": False})
        ec2.modify_instance_attribute(InstanceId=instance, BlockDeviceMappings=[{"DeviceName": "/dev/sdf", "Ebs": {"DeleteOnTermination": False}}])
        self.refused("InvalidIPAddress.InUse", 400, ec2.run_instances, **{**ask, "ClientToken": token + "2"})
        self.refused("DependencyViolation", 400, ec2.delete_security_group, GroupId=group)
        self.refused("IncorrectInstanceState", 400, ec2.modify_instance_attribute, InstanceId=instance, InstanceType={"Value": "m5.xlarge"})
        ec2.terminate_instances(InstanceIds=[instance])
        self.assertEqual(self.state(instance), "shutting-down")
        until(lambda: self.state(instance) == "terminated")
        self.assertEqual({ec2.describe_volumes(VolumeIds=[v["VolumeId"]])["Volumes"][0]["State"] for v in volumes.values()}, {"available"})
        ec2.delete_security_group(GroupId=group)
        self.refused("InvalidGroup.NotFound", 400, ec2.delete_security_group, GroupId=group)
        self.refused("IncorrectInstanceState", 400, ec2.start_instances, InstanceIds=[instance])

    def test_network_interfaces(self):
        image = self.image()
        subnet = ec2.describe_subnets()["Subnets"][0]
        made = ec2.run_instances(ImageId=image, MinCount=1, MaxCount=1, InstanceType="m5.large", NetworkInterfaces=[
            {"DeviceIndex": 0, "SubnetId": subnet["SubnetId"], "AssociatePublicIpAddress": False, "DeleteOnTermination": True}])["Instances"][0]
        self.assertEqual(made["SubnetId"], subnet["SubnetId"])
        first = subnet["CidrBlock"].split("/")[0].rsplit(".", 1)[0]
        made = ec2.run_instances(ImageId=image, MinCount=1, MaxCount=1, InstanceType="m5.large", CpuOptions={"CoreCount": 1, "ThreadsPerCore": 1},
                                 EnclaveOptions={"Enabled": True}, HibernationOptions={"Configured": True}, MaintenanceOptions={"AutoRecovery": "disabled"},
                                 PrivateDnsNameOptions={"HostnameType": "resource-name", "EnableResourceNameDnsARecord": True}, NetworkInterfaces=[
            {"DeviceIndex": 0, "SubnetId": subnet["SubnetId"], "PrivateIpAddresses": [
                {"PrivateIpAddress": f"{first}.90", "Primary": True}, {"PrivateIpAddress": f"{first}.91", "Primary": False}]}])["Instances"][0]
        addresses = {a["PrivateIpAddress"]: a["Primary"] for a in made["NetworkInterfaces"][0]["PrivateIpAddresses"]}
        self.assertEqual(addresses, {f"{first}.90": True, f"{first}.91": False})
        self.assertEqual((made["CpuOptions"]["ThreadsPerCore"], made["EnclaveOptions"], made["MaintenanceOptions"]), (1, {"Enabled": True}, {"AutoRecovery": "disabled"}))
        self.assertEqual(made["PrivateDnsNameOptions"]["HostnameType"], "resource-name")

    def test_wrong_choices(self):
        ask = dict(ImageId=self.image(), MinCount=1, MaxCount=1, InstanceType="m5.large")
        self.refused("InvalidAMIID.NotFound", 400, ec2.run_instances, **{**ask, "ImageId": "ami-0123456789abcdef0"})
        self.refused("InvalidAMIID.Malformed", 400, ec2.run_instances, **{**ask, "ImageId": "ami-zz"})
        self.refused("InvalidParameterValue", 400, ec2.run_instances, **{**ask, "InstanceType": "m6g.large"})
        self.refused("InvalidKeyPair.NotFound", 400, ec2.run_instances, **ask, KeyName="nobody")
        self.refused("InvalidSubnetID.NotFound", 400, ec2.run_instances, **ask, SubnetId="subnet-0123456789abcdef0")
        self.refused("InvalidGroup.NotFound", 400, ec2.run_instances, **ask, SecurityGroupIds=["sg-0123456789abcdef0"])
        self.refused("InvalidParameterValue", 400, ec2.run_instances, **ask, IamInstanceProfile={"Name": "nobody"})

    def test_stopped_and_started(self):
        settings(timing={"instance_ms": 150})
        machine, volumes = self.machine()
        lab("PUT", f"instances/{machine}/console", b"login:")
        self.assertEqual(ec2.get_console_output(InstanceId=machine)["Output"], "login:")
        self.refused("OperationNotPermitted", 400, ec2.detach_volume, VolumeId=volumes[0])
        change = ec2.stop_instances(InstanceIds=[machine])["StoppingInstances"][0]
        self.assertEqual((change["PreviousState"]["Name"], change["CurrentState"]["Name"]), ("running", "stopping"))
        self.refused("IncorrectInstanceState", 400, ec2.start_instances, InstanceIds=[machine])
        until(lambda: self.state(machine) == "stopped")
        self.assertEqual(ec2.describe_instance_status(InstanceIds=[machine])["InstanceStatuses"], [])
        ec2.detach_volume(VolumeId=volumes[0])
        self.available(volumes[0])
        ec2.attach_volume(VolumeId=volumes[0], InstanceId=machine, Device="/dev/xvda")
        ec2.modify_instance_attribute(InstanceId=machine, UserData={"Value": b"new"})
        ec2.start_instances(InstanceIds=[machine])
        until(lambda: self.state(machine) == "running")

    def test_described(self):
        machine, volumes = self.machine({"size_gib": 1}, name="filtered", platform="windows", instance_type="m5d.large", instance_store=["/dev/sdb"], product_codes=["abc"])
        found = ec2.describe_instances(Filters=[{"Name": "tag:Name", "Values": ["filt*"]}, {"Name": "instance-state-name", "Values": ["running"]}])
        shown = found["Reservations"][0]["Instances"][0]
        self.assertEqual((shown["InstanceId"], shown["Platform"], shown["PlatformDetails"], shown["UsageOperation"]), (machine, "windows", "Windows", "RunInstances:0002"))
        self.assertEqual(shown["BlockDeviceMappings"][0]["Ebs"]["VolumeId"], volumes[0])
        pages = ec2.get_paginator("describe_instances").paginate(PaginationConfig={"PageSize": 5})
        everything = [i["InstanceId"] for p in pages for r in p["Reservations"] for i in r["Instances"]]
        self.assertIn(PROXY, everything)
        self.refused("InvalidInstanceID.NotFound", 400, ec2.describe_instances, InstanceIds=["i-0123456789abcdef0"])
        self.refused("InvalidInstanceID.Malformed", 400, ec2.describe_instances, InstanceIds=["web"])
        kinds = ec2.describe_instance_types(InstanceTypes=["m5d.large", "m7i.large", "t2.micro"])["InstanceTypes"]
        limits = {k["InstanceType"]: (k["EbsInfo"]["AttachmentLimitType"], k["EbsInfo"]["NvmeSupport"]) for k in kinds}
        self.assertEqual(limits, {"m5d.large": ("shared", "required"), "m7i.large": ("dedicated", "required"), "t2.micro": ("shared", "unsupported")})
        self.refused("InvalidInstanceType", 400, ec2.describe_instance_types, InstanceTypes=["z9.huge"])


class Surroundings(Case):
    def test_network(self):
        zones = ec2.describe_availability_zones()["AvailabilityZones"]
        self.assertEqual([z["ZoneName"] for z in zones], ["us-east-1a", "us-east-1b", "us-east-1c"])
        self.assertIn("us-east-1", [r["RegionName"] for r in ec2.describe_regions()["Regions"]])
        vpc = ec2.describe_vpcs(Filters=[{"Name": "is-default", "Values": ["true"]}])["Vpcs"][0]["VpcId"]
        self.assertEqual(len(ec2.describe_subnets(Filters=[{"Name": "vpc-id", "Values": [vpc]}])["Subnets"]), 3)
        self.assertEqual(ec2.describe_security_groups(GroupNames=["default"])["SecurityGroups"][0]["VpcId"], vpc)
        self.refused("InvalidGroup.NotFound", 400, ec2.describe_security_groups, GroupIds=["sg-0123456789abcdef0"])
        self.machine(key_name="listed")
        self.assertEqual(ec2.describe_key_pairs(KeyNames=["listed"])["KeyPairs"][0]["KeyName"], "listed")
        self.refused("InvalidKeyPair.NotFound", 400, ec2.describe_key_pairs, KeyNames=["nobody"])
        ec2.describe_account_attributes(AttributeNames=["default-vpc"])
        self.refused("InvalidGroup.Duplicate", 400, ec2.create_security_group, GroupName="default", Description="d", VpcId=vpc)

    def test_another_region_is_empty(self):
        west = client("ec2", region_name="us-west-2")
        self.refused("InvalidInstanceID.NotFound", 400, west.describe_instances, InstanceIds=[PROXY])
        self.assertEqual(west.describe_instances()["Reservations"], [])
        self.assertEqual(west.describe_availability_zones()["AvailabilityZones"][0]["ZoneName"], "us-west-2a")

    def test_tags(self):
        volume = self.volume()
        machine, _ = self.machine()
        ec2.create_tags(Resources=[volume, machine], Tags=tag(one="1", two="2"))
        ec2.create_tags(Resources=[volume], Tags=tag(one="changed"))
        found = ec2.describe_tags(Filters=[{"Name": "resource-id", "Values": [volume]}])["Tags"]
        self.assertEqual({t["Key"]: (t["Value"], t["ResourceType"]) for t in found}, {"one": ("changed", "volume"), "two": ("2", "volume")})
        ec2.delete_tags(Resources=[volume], Tags=[{"Key": "one", "Value": "other"}, {"Key": "two"}])
        self.assertEqual(ec2.describe_volumes(VolumeIds=[volume])["Volumes"][0]["Tags"], tag(one="changed"))
        self.refused("InvalidVolume.NotFound", 400, ec2.create_tags, Resources=["vol-0123456789abcdef0"], Tags=tag(a="1"))
        self.refused("InvalidParameterValue", 400, ec2.create_tags, Resources=[volume], Tags=tag(**{"aws:a": "1"}))
        self.refused("TagLimitExceeded", 400, ec2.create_tags, Resources=[volume], Tags=tag(**{f"k{n}": "v" for n in range(50)}))
