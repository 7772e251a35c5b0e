//! The machine as a whole: what the firmware says of it (DMI, in /sys/class/dmi/id), and /proc/loadavg.

use duet_client::api::{ResourcesLoad, ResourcesSystem};
use serde_json::{Value, json};

use super::tree::Tree;

pub(super) fn read(tree: &Tree) -> ResourcesSystem {
    let dmi = |name: &str| tree.text(format!("sys/class/dmi/id/{name}")).unwrap_or_default();
    let has_dmi = tree.at("sys/class/dmi/id").exists();
    let part = |value: Value| has_dmi.then_some(value);
    ResourcesSystem {
        uuid: dmi("product_uuid"),
        vendor: dmi("sys_vendor"),
        product: dmi("product_name"),
        family: dmi("product_family"),
        version: dmi("product_version"),
        sku: dmi("product_sku"),
        serial: dmi("product_serial"),
        kind: kind(tree).to_owned(),
        firmware: part(
            json!({ "vendor": dmi("bios_vendor"), "date": dmi("bios_date"), "version": dmi("bios_version") }),
        ),
        chassis: part(json!({
            "vendor": dmi("chassis_vendor"), "type": chassis(&dmi("chassis_type")), "serial": dmi("chassis_serial"),
            "version": dmi("chassis_version"),
        })),
        motherboard: part(json!({
            "vendor": dmi("board_vendor"), "product": dmi("board_name"), "serial": dmi("board_serial"),
            "version": dmi("board_version"),
        })),
    }
}

/// What Duet itself runs on.
fn kind(tree: &Tree) -> &'static str {
    // systemd's Container Interface, and the file that container managers leave for it.
    let contained = tree.at("run/systemd/container").exists() || tree.at("run/host/container-manager").exists();
    let flags = tree.text("proc/cpuinfo").unwrap_or_default();
    // The kernel shows CPUID's hypervisor bit among the flags.
    let virtual_cpu = flags.lines().any(|l| l.starts_with("flags") && l.split_whitespace().any(|f| f == "hypervisor"));
    match (contained, virtual_cpu) {
        (true, _) => "container",
        (false, true) => "virtual-machine",
        (false, false) => "physical",
    }
}

/// Names of the commonest types (SMBIOS specification, 7.4.1).
fn chassis(number: &str) -> &str {
    match number {
        "1" => "Other",
        "2" => "Unknown",
        "3" => "Desktop",
        "4" => "Low Profile Desktop",
        "6" => "Mini Tower",
        "7" => "Tower",
        "8" => "Portable",
        "9" => "Laptop",
        "10" => "Notebook",
        "13" => "All in One",
        "17" => "Main Server Chassis",
        "23" => "Rack Mount Chassis",
        "35" => "Mini PC",
        other => other,
    }
}

pub(super) fn load(tree: &Tree) -> ResourcesLoad {
    let text = tree.text("proc/loadavg").unwrap_or_default();
    let words: Vec<&str> = text.split_whitespace().collect();
    let average = |index: usize| words.get(index).and_then(|word| word.parse().ok()).unwrap_or(0.0);
    ResourcesLoad {
        average_1_min: average(0),
        average_5_min: average(1),
        average_10_min: average(2),
        // "2/121": running and existing.
        processes: words.get(3).and_then(|word| word.split_once('/')?.1.parse().ok()).unwrap_or(0),
    }
}
