//! The PCI bus: /sys/bus/pci (kernel: Documentation/PCI/sysfs-pci.rst), with names from pci.ids where the host has it.

use std::collections::HashMap;
use std::path::Path;

use duet_client::api::{ResourcesPci, ResourcesPciDevice};

use super::tree::{self, Tree};

/// Names of vendors and their products.
#[derive(Default)]
pub(super) struct Names {
    vendors: HashMap<String, String>,
    products: HashMap<(String, String), String>,
}

impl Names {
    /// From where Debian's pci.ids and others' hwdata keep them.
    pub fn read(tree: &Tree) -> Self {
        let places = ["usr/share/misc/pci.ids", "usr/share/hwdata/pci.ids"];
        places.iter().find_map(|place| tree.text(place)).map(|text| Self::parse(&text)).unwrap_or_default()
    }

    /// Lines of a vendor's number and name, and below it, after one tab, its products'. Classes begin with `C `.
    fn parse(text: &str) -> Self {
        let mut names = Self::default();
        let mut vendor = None;
        for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            match line.strip_prefix('\t') {
                Some(rest) if rest.starts_with('\t') => {}
                Some(rest) => {
                    if let (Some(vendor), Some((id, name))) = (&vendor, rest.split_once("  ")) {
                        names.products.insert((String::clone(vendor), id.to_owned()), name.to_owned());
                    }
                }
                None => {
                    let pair = line.split_once("  ").filter(|(id, _)| id.len() == 4);
                    vendor = pair.map(|(id, _)| id.to_owned());
                    names.vendors.extend(pair.map(|(id, name)| (id.to_owned(), name.to_owned())));
                }
            }
        }
        names
    }
}

/// What a device is, by number and by name.
pub(super) struct Identity {
    pub vendor: String,
    pub vendor_id: String,
    pub product: String,
    pub product_id: String,
    pub driver: String,
    pub driver_version: String,
    pub numa_node: u64,
}

/// Reads a device's directory.
pub(super) fn identify(tree: &Tree, names: &Names, dir: &Path) -> Identity {
    let id = |file: &str| {
        let text = tree::text(&dir.join(file)).unwrap_or_default();
        text.strip_prefix("0x").map(str::to_owned).unwrap_or(text)
    };
    let (vendor_id, product_id) = (id("vendor"), id("device"));
    let driver = tree::link_name(&dir.join("driver")).unwrap_or_default();
    let driver_version = match driver.as_str() {
        "" => String::new(),
        // What comes with the kernel has the kernel's version.
        name => tree
            .text(format!("sys/module/{name}/version"))
            .unwrap_or_else(|| rustix::system::uname().release().to_string_lossy().into_owned()),
    };
    Identity {
        vendor: names.vendors.get(&vendor_id).cloned().unwrap_or_default(),
        product: names.products.get(&(vendor_id.clone(), product_id.clone())).cloned().unwrap_or_default(),
        vendor_id,
        product_id,
        driver,
        driver_version,
        numa_node: tree::number(&dir.join("numa_node")).unwrap_or(0),
    }
}

pub(super) fn read(tree: &Tree, names: &Names) -> ResourcesPci {
    let device = |dir: std::path::PathBuf| {
        let identity = identify(tree, names, &dir);
        ResourcesPciDevice {
            driver: identity.driver,
            driver_version: identity.driver_version,
            numa_node: identity.numa_node,
            pci_address: tree::name(&dir),
            vendor: identity.vendor,
            vendor_id: identity.vendor_id,
            product: identity.product,
            product_id: identity.product_id,
            iommu_group: tree::link_name(&dir.join("iommu_group")).and_then(|name| name.parse().ok()).unwrap_or(0),
            ..ResourcesPciDevice::default()
        }
    };
    let devices: Vec<_> = tree.list("sys/bus/pci/devices").into_iter().map(device).collect();
    ResourcesPci { total: devices.len() as u64, devices }
}
