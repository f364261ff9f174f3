#!/usr/bin/env python3
"""Puts a folder's files into a bucket: s3_put.py FOLDER BUCKET PREFIX

The server and the key are the usual variables' (AWS_ENDPOINT, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION); nothing but Python is needed.
"""

import datetime
import hashlib
import hmac
import http.client
import os
import pathlib
import sys
import urllib.parse


def sign(key, text):
    return hmac.new(key, text.encode(), hashlib.sha256).digest()


def headers(method, host, path, body):
    """Signature version 4."""
    region, access = os.environ["AWS_REGION"], os.environ["AWS_ACCESS_KEY_ID"]
    now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y%m%dT%H%M%SZ")
    content = hashlib.sha256(body).hexdigest()
    signed = {"host": host, "x-amz-content-sha256": content, "x-amz-date": now}
    names = ";".join(signed)
    request = "\n".join([method, path, "", *(f"{name}:{value}" for name, value in signed.items()), "", names, content])
    scope = f"{now[:8]}/{region}/s3/aws4_request"
    text = "\n".join(["AWS4-HMAC-SHA256", now, scope, hashlib.sha256(request.encode()).hexdigest()])
    key = ("AWS4" + os.environ["AWS_SECRET_ACCESS_KEY"]).encode()
    for part in [now[:8], region, "s3", "aws4_request"]:
        key = sign(key, part)
    credential = f"AWS4-HMAC-SHA256 Credential={access}/{scope},SignedHeaders={names},Signature={sign(key, text).hex()}"
    return {**signed, "authorization": credential}


def main(folder, bucket, prefix):
    host = urllib.parse.urlsplit(os.environ["AWS_ENDPOINT"]).netloc
    connection = http.client.HTTPConnection(host)
    folder = pathlib.Path(folder)
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        path = urllib.parse.quote(f"/{bucket}/{prefix}/{file.relative_to(folder).as_posix()}")
        body = file.read_bytes()
        connection.request("PUT", path, body, headers("PUT", host, path, body))
        answer = connection.getresponse()
        told = answer.read()
        if answer.status >= 300:
            sys.exit(f"{path}: {answer.status} {told.decode(errors='replace')}")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
