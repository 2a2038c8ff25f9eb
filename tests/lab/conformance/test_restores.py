import os

from harness import *

EVERYWHERE = {"IpProtocol": "-1", "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}
SSH = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "IpRanges": [{"CidrIp": "10.1.2.3/8", "Description": "offices"}]}


class Groups(Case):
    def group(self, **more):
        return ec2.create_security_group(GroupName=os.urandom(4).hex(), Description="d", **more)["GroupId"]

    def shown(self, group):
        return ec2.describe_security_groups(GroupIds=[group])["SecurityGroups"][0]

    def rules(self, group, which):
        return [(p["IpProtocol"], p.get("FromPort"), [r["CidrIp"] for r in p["IpRanges"]]) for p in self.shown(group)[which]]

    def test_a_group_that_lets_nothing_through(self):
        group = self.group()
        self.assertEqual(self.rules(group, "IpPermissions"), [])
        self.assertEqual(self.rules(group, "IpPermissionsEgress"), [("-1", None, ["0.0.0.0/0"])])
        self.refused("DryRunOperation", 412, ec2.revoke_security_group_egress, GroupId=group, IpPermissions=[EVERYWHERE], DryRun=True)
        revoked = ec2.revoke_security_group_egress(GroupId=group, IpPermissions=[EVERYWHERE])
        self.assertEqual([(r["IsEgress"], r["IpProtocol"], r["CidrIpv4"]) for r in revoked["RevokedSecurityGroupRules"]], [(True, "-1", "0.0.0.0/0")])
        self.assertEqual(self.rules(group, "IpPermissionsEgress"), [])
        # in a default VPC a rule that is not there is told, and no error
        again = ec2.revoke_security_group_egress(GroupId=group, IpPermissions=[EVERYWHERE])
        self.assertEqual((again["UnknownIpPermissions"][0]["IpProtocol"], again.get("RevokedSecurityGroupRules", [])), ("-1", []))

    def test_rules_of_both_directions(self):
        group, other = self.group(), self.group()
        made = ec2.authorize_security_group_ingress(GroupId=group, TagSpecifications=specification("security-group-rule", r="1"), IpPermissions=[
            SSH, {"IpProtocol": "6", "FromPort": 22, "ToPort": 22, "IpRanges": [{"CidrIp": "192.0.2.1/32"}], "Ipv6Ranges": [{"CidrIpv6": "::/0"}]},
            {"IpProtocol": "icmp", "FromPort": -1, "ToPort": -1, "UserIdGroupPairs": [{"GroupId": other}]}])["SecurityGroupRules"]
        self.assertEqual([(r["IpProtocol"], r.get("CidrIpv4"), r["Tags"]) for r in made], [
            ("tcp", "10.0.0.0/8", tag(r="1")), ("tcp", "192.0.2.1/32", tag(r="1")), ("tcp", None, tag(r="1")), ("icmp", None, tag(r="1"))])
        shown = self.shown(group)["IpPermissions"]
        self.assertEqual([(p["IpProtocol"], p["FromPort"], p["ToPort"]) for p in shown], [("tcp", 22, 22), ("icmp", -1, -1)])
        self.assertEqual(shown[0]["IpRanges"], [{"CidrIp": "10.0.0.0/8", "Description": "offices"}, {"CidrIp": "192.0.2.1/32"}])
        self.assertEqual(shown[1]["UserIdGroupPairs"][0]["GroupId"], other)
        self.refused("InvalidPermission.Duplicate", 400, ec2.authorize_security_group_ingress, GroupId=group, IpPermissions=[SSH])
        self.refused("InvalidPermission.Duplicate", 400, ec2.authorize_security_group_egress, GroupId=group, IpPermissions=[EVERYWHERE])
        ec2.authorize_security_group_egress(GroupId=group, IpPermissions=[SSH])
        self.assertEqual(self.rules(group, "IpPermissionsEgress"), [("-1", None, ["0.0.0.0/0"]), ("tcp", 22, ["10.0.0.0/8"])])
        ec2.authorize_security_group_ingress(GroupId=group, IpProtocol="udp", FromPort=53, ToPort=53, CidrIp="192.0.2.0/24")
        self.assertIn(("udp", 53, ["192.0.2.0/24"]), self.rules(group, "IpPermissions"))
        # a group that a rule names stays
        self.refused("DependencyViolation", 400, ec2.delete_security_group, GroupId=other)
        ec2.revoke_security_group_ingress(GroupId=group, SecurityGroupRuleIds=[made[3]["SecurityGroupRuleId"]])
        self.refused("InvalidSecurityGroupRuleId.NotFound", 400, ec2.revoke_security_group_ingress, GroupId=group, SecurityGroupRuleIds=[made[3]["SecurityGroupRuleId"]])
        ec2.delete_security_group(GroupId=other)
        ec2.revoke_security_group_ingress(GroupId=group, IpPermissions=[SSH])
        self.assertNotIn("10.0.0.0/8", str(self.shown(group)["IpPermissions"]))

    def test_wrong_rules(self):
        group = self.group()
        wrong = lambda code, **change: self.refused(code, 400, ec2.authorize_security_group_ingress, GroupId=group, IpPermissions=[{**SSH, **change}])
        wrong("InvalidParameterValue", IpProtocol="tcq")
        wrong("InvalidParameterValue", FromPort=23)
        wrong("InvalidParameterValue", ToPort=70000)
        wrong("InvalidParameterValue", IpRanges=[{"CidrIp": "10.0.0.0/33"}])
        wrong("InvalidGroup.NotFound", IpRanges=[], UserIdGroupPairs=[{"GroupId": "sg-0123456789abcdef0"}])
        self.refused("InvalidGroup.NotFound", 400, ec2.authorize_security_group_ingress, GroupId="sg-0123456789abcdef0", IpPermissions=[SSH])
        self.refused("MissingParameter", 400, ec2.authorize_security_group_egress, GroupId=group)
        settings(limits={"group_rules": 1})
        ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[SSH])
        self.refused("RulesPerSecurityGroupLimitExceeded", 400, ec2.authorize_security_group_ingress, GroupId=group, IpPermissions=[EVERYWHERE])
        self.assertEqual(len(self.shown(group)["IpPermissions"]), 1)

    def test_permissions(self):
        tagged, other = self.group(TagSpecifications=specification("security-group", ours="yes")), self.group()
        allow = {"Effect": "Allow", "Action": "ec2:RevokeSecurityGroupEgress", "Resource": "*", "Condition": {"StringEquals": {"aws:ResourceTag/ours": "yes"}}}
        lab("PUT", f"policy/{os.environ['AWS_ACCESS_KEY_ID']}", {"Version": "2012-10-17", "Statement": [allow]})
        self.refused("UnauthorizedOperation", 403, ec2.revoke_security_group_egress, GroupId=other, IpPermissions=[EVERYWHERE])
        self.refused("UnauthorizedOperation", 403, ec2.authorize_security_group_egress, GroupId=tagged, IpPermissions=[SSH])
        ec2.revoke_security_group_egress(GroupId=tagged, IpPermissions=[EVERYWHERE])

    def test_other_vpcs_know_every_rule(self):
        vpc = ec2.describe_vpcs(Filters=[{"Name": "is-default", "Values": ["false"]}])["Vpcs"][0]["VpcId"]
        subnet = ec2.describe_subnets(Filters=[{"Name": "vpc-id", "Values": [vpc]}])["Subnets"][0]
        self.assertEqual((subnet["CidrBlock"], subnet["DefaultForAz"]), ("10.9.0.0/24", False))
        own = ec2.describe_security_groups(Filters=[{"Name": "vpc-id", "Values": [vpc]}, {"Name": "group-name", "Values": ["default"]}])["SecurityGroups"][0]
        self.assertEqual(own["IpPermissions"][0]["UserIdGroupPairs"][0]["GroupId"], own["GroupId"])
        group = self.group(VpcId=vpc)
        self.refused("InvalidPermission.NotFound", 400, ec2.revoke_security_group_egress, GroupId=group, IpPermissions=[EVERYWHERE, SSH])
        self.assertEqual(len(self.shown(group)["IpPermissionsEgress"]), 1)


class Restores(Case):
    def registered(self, **more):
        volume = self.volume()
        self.write(volume, 0, b"boot")
        snapshot = self.snapshot(volume)
        ask = {"Name": os.urandom(8).hex(), "RootDeviceName": "/dev/xvda", "Architecture": "x86_64", "VirtualizationType": "hvm", "EnaSupport": True,
               "BlockDeviceMappings": [{"DeviceName": "/dev/xvda", "Ebs": {"SnapshotId": snapshot}}], **more}
        made = ec2.register_image(**ask)["ImageId"]
        return until(lambda: [i for i in ec2.describe_images(ImageIds=[made])["Images"] if i["State"] == "available"])[0]

    def launched(self, image, **more):
        ask = {"ImageId": image["ImageId"], "MinCount": 1, "MaxCount": 1, "InstanceType": "m5.large", **more}
        return ec2.run_instances(**ask)["Instances"][0]

    def shown(self, instance):
        return ec2.describe_instances(InstanceIds=[instance])["Reservations"][0]["Instances"][0]

    def running(self, instance):
        return until(lambda: (shown := self.shown(instance))["State"]["Name"] == "running" and shown)

    def test_instances_are_as_their_image(self):
        image = self.registered(BootMode="uefi", TpmSupport="v2.0", UefiData="QU1aTlVFRkk=", ImdsSupport="v2.0", BillingProducts=["bp-6fa54006"])
        self.assertEqual((image["BootMode"], image["TpmSupport"], image["ImdsSupport"]), ("uefi", "v2.0", "v2.0"))
        self.assertEqual((image["PlatformDetails"], image["UsageOperation"]), ("Red Hat Enterprise Linux", "RunInstances:0010"))
        made = self.launched(image)
        self.assertEqual((made["BootMode"], made["CurrentInstanceBootMode"], made["TpmSupport"]), ("uefi", "uefi", "v2.0"))
        self.assertEqual((made["PlatformDetails"], made["UsageOperation"]), ("Red Hat Enterprise Linux", "RunInstances:0010"))
        self.assertEqual((made["MetadataOptions"]["HttpTokens"], made["MetadataOptions"]["HttpPutResponseHopLimit"]), ("required", 2))
        self.assertEqual(ec2.get_instance_uefi_data(InstanceId=made["InstanceId"])["UefiData"], "QU1aTlVFRkk=")
        self.running(made["InstanceId"])
        copy = ec2.create_image(InstanceId=made["InstanceId"], Name=os.urandom(8).hex())["ImageId"]
        self.assertEqual(ec2.describe_image_attribute(ImageId=copy, Attribute="uefiData")["UefiData"]["Value"], "QU1aTlVFRkk=")
        plain = self.launched(self.registered())
        self.assertEqual((plain["UsageOperation"], plain["MetadataOptions"]["HttpTokens"]), ("RunInstances", "optional"))
        self.assertNotIn("UefiData", ec2.get_instance_uefi_data(InstanceId=plain["InstanceId"]))
        windows = self.registered(BillingProducts=["bp-6ba54002"])
        self.assertEqual(windows["Platform"], "windows")
        self.refused("InvalidParameterCombination", 400, self.registered, UefiData="QU1aTlVFRkk=")
        self.refused("InvalidParameterCombination", 400, self.registered, TpmSupport="v2.0")

    def test_uefi_data_of_machines(self):
        machine, _ = self.machine(boot_mode="uefi", uefi_data="QUJD")
        self.assertEqual(ec2.get_instance_uefi_data(InstanceId=machine)["UefiData"], "QUJD")
        self.refused("DryRunOperation", 412, ec2.get_instance_uefi_data, InstanceId=machine, DryRun=True)
        self.refused("InvalidInstanceID.NotFound", 400, ec2.get_instance_uefi_data, InstanceId="i-0123456789abcdef0")

    def test_data_volumes_from_snapshots(self):
        image = self.registered()
        data = self.volume(2)
        self.write(data, 5, b"data")
        snapshot = self.snapshot(data, TagSpecifications=specification("snapshot", ours="yes"))
        mapping = {"DeviceName": "/dev/sdf", "Ebs": {"SnapshotId": snapshot, "VolumeType": "gp3", "Throughput": 200, "DeleteOnTermination": False}}
        made = self.launched(image, Placement={"AvailabilityZone": "us-east-1c"}, BlockDeviceMappings=[mapping], TagSpecifications=specification("volume", v="1"))
        shown = self.running(made["InstanceId"])
        self.assertEqual(shown["Placement"]["AvailabilityZone"], "us-east-1c")
        of = {m["DeviceName"]: m["Ebs"] for m in shown["BlockDeviceMappings"]}
        self.assertEqual({d: m["DeleteOnTermination"] for d, m in of.items()}, {"/dev/xvda": True, "/dev/sdf": False})
        volume = ec2.describe_volumes(VolumeIds=[of["/dev/sdf"]["VolumeId"]])["Volumes"][0]
        self.assertEqual((volume["Size"], volume["Throughput"], volume["SnapshotId"], volume["AvailabilityZone"], volume["Tags"]),
                         (2, 200, snapshot, "us-east-1c", tag(v="1")))
        self.assertEqual(lab("GET", f"volumes/{volume['VolumeId']}/read?offset={5 * BLOCK}&length=4"), b"data")
        # a policy sees the snapshots that the call names
        deny = {"Effect": "Deny", "Action": "ec2:RunInstances", "Resource": "arn:aws:ec2:*::snapshot/*", "Condition": {"StringEquals": {"aws:ResourceTag/ours": "yes"}}}
        lab("PUT", f"policy/{os.environ['AWS_ACCESS_KEY_ID']}", {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}, deny]})
        self.launched(image)
        self.refused("UnauthorizedOperation", 403, self.launched, image, BlockDeviceMappings=[mapping])

    def test_types_by_zone(self):
        offers = lambda **ask: [(o["Location"], o["InstanceType"]) for o in ec2.describe_instance_type_offerings(**ask)["InstanceTypeOfferings"]]
        rare = [{"Name": "instance-type", "Values": ["c5n.xlarge"]}]
        self.assertEqual(offers(LocationType="availability-zone", Filters=rare), [(f"us-east-1{z}", "c5n.xlarge") for z in "abc"])
        lab("PUT", "missing-types", [{"instance_type": "c5n.xlarge", "zone": "b"}])
        self.assertEqual(offers(LocationType="availability-zone", Filters=rare), [("us-east-1a", "c5n.xlarge"), ("us-east-1c", "c5n.xlarge")])
        self.assertEqual(offers(LocationType="availability-zone-id", Filters=rare), [("use1-az1", "c5n.xlarge"), ("use1-az3", "c5n.xlarge")])
        self.assertEqual(offers(Filters=rare), [("us-east-1", "c5n.xlarge")])
        there = [{"Name": "location", "Values": ["us-east-1b"]}]
        self.assertNotIn(("us-east-1b", "c5n.xlarge"), offers(LocationType="availability-zone", Filters=there))
        self.assertIn(("us-east-1b", "m5.large"), offers(LocationType="availability-zone", Filters=there))
        pages = ec2.get_paginator("describe_instance_type_offerings").paginate(LocationType="availability-zone", PaginationConfig={"PageSize": 7})
        self.assertEqual(sum(len(p["InstanceTypeOfferings"]) for p in pages), 18 * 3 - 1)
        self.refused("InvalidParameterValue", 400, ec2.describe_instance_type_offerings, Filters=[{"Name": "colour", "Values": ["red"]}])
        image = self.registered()
        ask = {"InstanceType": "c5n.xlarge", "Placement": {"AvailabilityZone": "us-east-1b"}}
        self.assertIn("us-east-1a, us-east-1c", self.refused("Unsupported", 400, self.launched, image, **ask)["Error"]["Message"])
        self.launched(image, **{**ask, "Placement": {"AvailabilityZone": "us-east-1c"}})

    def status(self, instance):
        shown = ec2.describe_instance_status(InstanceIds=[instance])["InstanceStatuses"]
        return shown and (shown[0]["InstanceStatus"]["Status"], shown[0]["SystemStatus"]["Status"])

    def test_status_checks(self):
        hour = 3_600_000
        settings(timing={"checks_ms": hour})
        machine = self.launched(self.registered())["InstanceId"]
        self.running(machine)
        self.assertEqual(self.status(machine), ("initializing", "initializing"))
        lab("POST", f"advance?ms={hour}")
        self.assertEqual(self.status(machine), ("ok", "ok"))
        ec2.reboot_instances(InstanceIds=[machine])
        self.assertEqual((self.shown(machine)["State"]["Name"], self.status(machine)), ("running", ("initializing", "initializing")))
        lab("POST", f"advance?ms={hour}")
        lab("PUT", f"instances/{machine}/impaired", True)
        self.assertEqual(self.status(machine), ("impaired", "ok"))
        lab("PUT", f"instances/{machine}/impaired", False)
        self.assertEqual(self.status(machine), ("ok", "ok"))
        lab("PUT", "impair-new", True)
        self.addCleanup(lambda: lab("PUT", "impair-new", False))
        settings(timing={"checks_ms": 0})
        machine = self.launched(self.registered())["InstanceId"]
        self.running(machine)
        self.assertEqual(self.status(machine), ("impaired", "ok"))

    def test_rebooted(self):
        machine, _ = self.machine()
        self.refused("DryRunOperation", 412, ec2.reboot_instances, InstanceIds=[machine], DryRun=True)
        self.refused("InvalidInstanceID.NotFound", 400, ec2.reboot_instances, InstanceIds=[machine, "i-0123456789abcdef0"])
        ec2.stop_instances(InstanceIds=[machine])
        until(lambda: self.shown(machine)["State"]["Name"] == "stopped")
        self.refused("IncorrectInstanceState", 400, ec2.reboot_instances, InstanceIds=[machine])
        ec2.terminate_instances(InstanceIds=[machine])
        ec2.reboot_instances(InstanceIds=[machine])
