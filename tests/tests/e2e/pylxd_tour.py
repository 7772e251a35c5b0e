"""What pylxd has a model for, once around. Arguments: the socket, a folder to work in."""

import os
import sys
import threading

import pylxd

socket, folder = sys.argv[1:]
client = pylxd.Client(endpoint="http+unix://" + socket.replace("/", "%2F"))
assert client.trusted and client.host_info["environment"]["server"] == "incus"
assert client.resources["cpu"]["total"] >= 1

# Events, while the rest goes on.
actions = []


class Listener(pylxd.client._WebsocketClient):
    def received_message(self, message):
        actions.append(message.data.decode())


events = client.events(websocket_client=Listener)
events.connect()
threading.Thread(target=events.run, daemon=True).start()

# Images.
image = client.images.get_by_alias("busybox")
assert client.images.all()[0].fingerprint == image.fingerprint
assert image.properties["os"] == "BusyBox"
exported = image.export().read()
assert len(exported) == image.size
image.add_alias("other", "another name")
image.delete_alias("other")
image.properties["note"] = "x"
image.save(wait=True)

# Instances.
source = {"name": "p1", "source": {"type": "image", "alias": "busybox"}}
instance = client.instances.create(source, wait=True)
assert client.instances.exists("p1") and not client.instances.exists("p9")
assert [one.name for one in client.containers.all()] == ["p1"]
instance.start(wait=True)
instance.sync()
assert instance.status == "Running"
assert "eth0" in instance.state().network
result = instance.execute(["sh", "-c", "echo out; echo err >&2; exit 3"])
assert (result.exit_code, result.stdout, result.stderr) == (3, "out\n", "err\n"), result
assert instance.execute(["cat"], stdin_payload="some input").stdout == "some input"
assert instance.execute(["sh", "-c", "echo $A"], environment={"A": "b"}).stdout == "b\n"
instance.config["limits.memory"] = "64MiB"
instance.save(wait=True)
instance.sync()
assert instance.config["limits.memory"] == "64MiB"

# Files, both ways.
instance.files.put("/root/x", b"data", mode=0o600, uid=3, gid=4)
assert instance.files.get("/root/x") == b"data"
assert instance.execute(["stat", "-c", "%a %u %g", "/root/x"]).stdout == "600 3 4\n"
os.makedirs(os.path.join(folder, "tree", "sub"))
with open(os.path.join(folder, "tree", "sub", "file"), "w") as file:
    file.write("body")
instance.files.recursive_put(os.path.join(folder, "tree"), "/root/tree")
instance.files.recursive_get("/root/tree", os.path.join(folder, "back"))
with open(os.path.join(folder, "back", "sub", "file")) as file:
    assert file.read() == "body"
instance.files.mk_dir("/root/dir")
instance.files.delete("/root/x")
assert instance.execute(["ls", "/root"]).stdout == "dir\ntree\n"

# Snapshots.
instance.snapshots.create("s1", stateful=False, wait=True)
assert [one.name for one in instance.snapshots.all()] == ["s1"]
instance.execute(["rm", "-r", "/root/tree"])
instance.restore_snapshot("s1", wait=True)
assert instance.files.get("/root/tree/sub/file") == b"body"
instance.snapshots.get("s1").rename("s2", wait=True)
instance.snapshots.get("s2").publish(wait=True).delete(wait=True)
instance.snapshots.get("s2").delete(wait=True)

# The rest of a life.
instance.freeze(wait=True)
instance.unfreeze(wait=True)
instance.restart(wait=True, force=True)
instance.stop(wait=True, force=True)
published = instance.publish(wait=True)
data = published.export().read()
published.delete(wait=True)
again = client.images.create(data, wait=True)
assert again.fingerprint == published.fingerprint
again.delete(wait=True)
instance.rename("p2", wait=True)
client.instances.get("p2").delete(wait=True)
assert not client.instances.exists("p2")

# Profiles.
profile = client.profiles.create("pp", config={"limits.cpu": "1"}, devices={})
profile.description = "a description"
profile.save()
profile.rename("pq")
assert client.profiles.get("pq").description == "a description"
client.profiles.get("pq").delete()
assert [one.name for one in client.profiles.all()] == ["default"]

# Networks.
network = client.networks.create("pybr0", config={"ipv4.address": "10.97.1.1/24", "ipv6.address": "none"})
assert client.networks.get("pybr0").state().hwaddr
network.config["ipv4.nat"] = "false"
network.save()
network.rename("pybr1")
assert client.networks.get("pybr1").config["ipv4.nat"] == "false"
client.networks.get("pybr1").delete()

# Storage pools, projects, the cluster that is none.
pool = client.storage_pools.get("default")
assert pool.driver == "overlay" and pool.resources.get().space["total"] > 0
assert [one.name for one in client.projects.all()] == ["default"]
assert not client.cluster.get().enabled

assert any("instance-created" in action for action in actions), actions
print("all done")
os._exit(0)
