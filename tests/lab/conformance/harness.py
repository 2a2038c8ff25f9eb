"""boto3 against the lab. Every raw answer is held against botocore's model of the operation: an element or member that the model does not
know, or a value that is not of its type, fails the test."""

import base64
import hashlib
import json
import os
import re
import time
import unittest
import urllib.error
import urllib.request
import xml.etree.ElementTree as ET

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

ENDPOINT = os.environ["AWS_ENDPOINT_URL_EC2"]
PROXY = os.environ["LAB_PROXY"]
ZONE = "us-east-1a"
BLOCK = 512 * 1024

# operations whose raw answers were held against the model
checked = set()


def bare(tag):
    return tag.rsplit("}", 1)[-1]


def scalar(shape, text, where):
    text = text or ""
    good = {
        "boolean": lambda: text in ("true", "false"),
        "integer": lambda: re.fullmatch(r"-?\d+", text),
        "long": lambda: re.fullmatch(r"-?\d+", text),
        "double": lambda: re.fullmatch(r"-?\d+(\.\d+)?", text),
        "float": lambda: re.fullmatch(r"-?\d+(\.\d+)?", text),
        "timestamp": lambda: re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", text),
        "string": lambda: True,
        "blob": lambda: base64.b64decode(text, validate=True) is not None,
    }[shape.type_name]()
    if not good:
        raise AssertionError(f"{where}: {text!r} is no {shape.type_name}")
    if shape.type_name == "string" and getattr(shape, "enum", None) and text not in shape.enum:
        # AWS writes "windows", whatever its model says
        if where.endswith("/platform") and text == "windows":
            return
        raise AssertionError(f"{where}: {text!r} is not one of {shape.enum}")


def check_xml(shape, node, where, item="item"):
    if shape.type_name == "structure":
        names = {m.serialization.get("name", n): m for n, m in shape.members.items()}
        seen = set()
        for child in node:
            name = bare(child.tag)
            if name not in names:
                raise AssertionError(f"{where}: the model has no <{name}>, only {sorted(names)}")
            if name in seen:
                raise AssertionError(f"{where}: <{name}> twice")
            seen.add(name)
            check_xml(names[name], child, f"{where}/{name}", item)
        for name in shape.required_members:
            if shape.members[name].serialization.get("name", name) not in seen:
                raise AssertionError(f"{where}: {name} is missing")
    elif shape.type_name == "list":
        for child in node:
            if bare(child.tag) != shape.member.serialization.get("name", item):
                raise AssertionError(f"{where}: <{bare(child.tag)}> in a list")
            check_xml(shape.member, child, f"{where}[]", item)
    else:
        if len(node):
            raise AssertionError(f"{where}: a {shape.type_name} with elements inside")
        scalar(shape, node.text, where)


def check_json(shape, value, where):
    if shape.type_name == "structure":
        assert isinstance(value, dict), f"{where}: {value!r} is no structure"
        for name, member in value.items():
            if name not in shape.members:
                raise AssertionError(f"{where}: the model has no {name}")
            check_json(shape.members[name], member, f"{where}/{name}")
    elif shape.type_name == "list":
        assert isinstance(value, list), f"{where}: {value!r} is no list"
        for member in value:
            check_json(shape.member, member, f"{where}[]")
    elif shape.type_name in ("integer", "long"):
        assert isinstance(value, int) and not isinstance(value, bool), f"{where}: {value!r} is no number"
    elif shape.type_name == "timestamp":
        assert isinstance(value, (int, float)) and 1.5e9 < value < 1e10, f"{where}: {value!r} is no time"
    elif shape.type_name == "boolean":
        assert isinstance(value, bool), f"{where}: {value!r}"
    elif shape.type_name == "string":
        assert isinstance(value, str), f"{where}: {value!r}"
        if getattr(shape, "enum", None):
            assert value in shape.enum, f"{where}: {value!r} is not one of {shape.enum}"
        pattern = shape.metadata.get("pattern")
        if pattern:
            assert re.search(pattern, value), f"{where}: {value!r} is not like {pattern}"
        if "max" in shape.metadata:
            assert len(value) <= shape.metadata["max"], f"{where}: {value!r} is too long"


def hold_against_model(operation_model, response_dict, **_):
    service = operation_model.service_model.service_name
    name = operation_model.name
    body, status = response_dict["body"], response_dict["status_code"]
    headers = response_dict["headers"]
    assert headers.get("x-amzn-requestid"), f"{name}: no request id in the headers"
    if status >= 300:
        check_error(service, name, status, headers, body)
        return
    checked.add(name)
    shape = operation_model.output_shape
    if service == "ebs":
        assert status == operation_model.http.get("responseCode", 200), f"{name}: status {status}"
        if name != "GetSnapshotBlock":
            check_json(shape, {k: v for k, v in json.loads(body).items()}, name)
        for member in shape.members.values():
            if member.serialization.get("location") == "header":
                assert headers.get(member.serialization["name"].lower()), f"{name}: no {member.serialization['name']}"
        return
    root = ET.fromstring(body)
    assert bare(root.tag) == f"{name}Response", root.tag
    if service == "ec2":
        assert root.tag.startswith("{http://ec2.amazonaws.com/doc/2016-11-15/}"), root.tag
        rest = [c for c in root if bare(c.tag) != "requestId"]
        assert len(rest) == len(root) - 1, f"{name}: no requestId"
        if shape is None:
            assert [bare(c.tag) for c in rest] == ["return"], f"{name}: {body}"
            return
        holder = ET.Element(root.tag)
        # calls that answer yes say so in an element which some models leave out
        holder.extend(c for c in rest if bare(c.tag) != "return" or "Return" in shape.members)
        check_xml(shape, holder, name)
    else:
        result = next(c for c in root if bare(c.tag) == f"{name}Result")
        check_xml(shape, result, name, "member")


def check_error(service, name, status, headers, body):
    if service == "ec2":
        root = ET.fromstring(body)
        assert [bare(c.tag) for c in root] == ["Errors", "RequestID"], body
        error = root.find("Errors/Error")
        assert error.find("Code").text and error.find("Message").text, body
    elif service == "ebs":
        error = json.loads(body)
        assert error["Message"], body
        assert headers["x-amzn-errortype"], headers


def client(service, **credentials):
    config = Config(retries={"total_max_attempts": 1, "mode": "standard"}, read_timeout=20, parameter_validation=credentials.pop("validate", True))
    made = boto3.client(service, config=config, **credentials)
    made.meta.events.register("before-parse", hold_against_model)
    return made


ec2 = client("ec2")
ebs = client("ebs")
sts = client("sts")


def lab(method, path, body=None):
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{ENDPOINT}/lab/{path}", method=method, data=data)
    with urllib.request.urlopen(request, timeout=60) as answer:
        raw = answer.read()
        return json.loads(raw) if "json" in answer.headers.get("Content-Type", "") else raw


def settings(**changes):
    return lab("PATCH", "settings", changes)


def tag(**tags):
    return [{"Key": k, "Value": v} for k, v in tags.items()]


def specification(kind, **tags):
    return [{"ResourceType": kind, "Tags": tag(**tags)}]


def sha(data):
    return base64.b64encode(hashlib.sha256(data).digest()).decode()


def until(what, seconds=20.0):
    end = time.monotonic() + seconds
    while True:
        found = what()
        if found:
            return found
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.02)


class Case(unittest.TestCase):
    """Puts settings, faults and policies back."""

    def setUp(self):
        before = lab("GET", "settings")
        self.addCleanup(lambda: lab("PUT", "settings", before))
        self.addCleanup(lambda: lab("PUT", "faults", []))
        self.addCleanup(lambda: lab("PUT", f"policy/{os.environ['AWS_ACCESS_KEY_ID']}", None))
        self.addCleanup(lambda: lab("PUT", "kms/denied", []))
        self.addCleanup(lambda: lab("POST", "quotas/refill"))

    def refused(self, code, status, call, *args, **kwargs):
        with self.assertRaises(ClientError) as caught:
            call(*args, **kwargs)
        error = caught.exception.response
        self.assertEqual((error["Error"]["Code"], error["ResponseMetadata"]["HTTPStatusCode"]), (code, status), error)
        return error

    def volume(self, size=1, **more):
        made = ec2.create_volume(**{"AvailabilityZone": ZONE, "Size": size, "VolumeType": "gp3", **more})
        return self.available(made["VolumeId"])

    def available(self, volume):
        until(lambda: ec2.describe_volumes(VolumeIds=[volume])["Volumes"][0]["State"] == "available")
        return volume

    def snapshot(self, volume, **more):
        made = ec2.create_snapshot(VolumeId=volume, **more)
        self.assertEqual(made["State"], "pending")
        return self.completed(made["SnapshotId"])

    def completed(self, snapshot):
        until(lambda: ec2.describe_snapshots(SnapshotIds=[snapshot])["Snapshots"][0]["State"] == "completed")
        return snapshot

    def write(self, volume, index, data):
        lab("POST", f"volumes/{volume}/write?offset={index * BLOCK}", data)

    def blocks(self, snapshot):
        found, more = [], {}
        while True:
            page = ebs.list_snapshot_blocks(SnapshotId=snapshot, **more)
            found += page["Blocks"]
            if "NextToken" not in page:
                return found
            more = {"NextToken": page["NextToken"]}

    def machine(self, *volumes, **more):
        spec = {"name": "m", "volumes": list(volumes) or [{"size_gib": 1}], **more}
        made = lab("POST", "instances", spec)
        return made["instance"], made["volumes"]
