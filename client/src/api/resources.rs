//! The host's hardware, `GET /1.0/resources`, as far as the daemon reports it.
//!
//! Sizes are bytes, counts are counts. What Incus reports of GPUs, USB and serial devices is kept as JSON values:
//! the daemon has nothing to say about them yet and the client only passes them on.

use serde_json::Value;

use super::is_default;

wire! {
    /// The whole answer.
    pub struct Resources {
        /// Processors.
        pub cpu: ResourcesCpu,
        /// Memory.
        pub memory: ResourcesMemory,
        /// Graphics cards.
        pub gpu: ResourcesGpu,
        /// Network cards.
        pub network: ResourcesNetwork,
        /// Disks.
        pub storage: ResourcesStorage,
        /// USB devices.
        pub usb: ResourcesDevices,
        /// PCI devices.
        pub pci: ResourcesPci,
        /// The machine.
        pub system: ResourcesSystem,
        /// How busy it is.
        pub load: ResourcesLoad,
    }

    /// Processors.
    #[cfg_attr(feature = "openapi", schema(as = ResourcesCPU))]
    pub struct ResourcesCpu {
        /// The architecture.
        pub architecture: String,
        /// By socket.
        pub sockets: Vec<ResourcesCpuSocket>,
        /// Threads in all.
        pub total: u64,
    }

    /// One processor socket.
    #[cfg_attr(feature = "openapi", schema(as = ResourcesCPUSocket))]
    pub struct ResourcesCpuSocket {
        /// The model; left out when unknown.
        #[serde(skip_serializing_if = "is_default")]
        pub name: String,
        /// The vendor; left out when unknown.
        #[serde(skip_serializing_if = "is_default")]
        pub vendor: String,
        /// The socket's number.
        pub socket: u64,
        /// Caches; left out when unknown.
        #[serde(skip_serializing_if = "is_default")]
        pub cache: Vec<ResourcesCpuCache>,
        /// Cores.
        pub cores: Vec<ResourcesCpuCore>,
        /// MHz now; left out when unknown.
        #[serde(skip_serializing_if = "is_default")]
        pub frequency: u64,
        /// The least MHz; left out when unknown.
        #[serde(skip_serializing_if = "is_default")]
        pub frequency_minimum: u64,
        /// The most MHz; left out when unknown.
        #[serde(skip_serializing_if = "is_default")]
        pub frequency_turbo: u64,
    }

    /// One cache.
    #[cfg_attr(feature = "openapi", schema(as = ResourcesCPUCache))]
    pub struct ResourcesCpuCache {
        /// Its level.
        pub level: u64,
        /// "Data", "Instruction" or "Unified".
        #[serde(rename = "type")]
        pub kind: String,
        /// Its size.
        pub size: u64,
    }

    /// One core.
    #[cfg_attr(feature = "openapi", schema(as = ResourcesCPUCore))]
    pub struct ResourcesCpuCore {
        /// Its number in the socket.
        pub core: u64,
        /// Its die.
        pub die: u64,
        /// Its threads.
        pub threads: Vec<ResourcesCpuThread>,
        /// MHz now; left out when unknown.
        #[serde(skip_serializing_if = "is_default")]
        pub frequency: u64,
        /// Its features.
        pub flags: Vec<String>,
    }

    /// One thread.
    #[cfg_attr(feature = "openapi", schema(as = ResourcesCPUThread))]
    pub struct ResourcesCpuThread {
        /// Its number on the host, as in `limits.cpu`.
        pub id: i64,
        /// Its NUMA node.
        pub numa_node: u64,
        /// Its number in the core.
        pub thread: u64,
        /// Whether it is online.
        pub online: bool,
        /// Whether the kernel keeps tasks off it.
        pub isolated: bool,
    }

    /// Memory.
    pub struct ResourcesMemory {
        /// By NUMA node.
        pub nodes: Vec<ResourcesMemoryNode>,
        /// Memory set aside for huge pages.
        pub hugepages_total: u64,
        /// How much of it is used.
        pub hugepages_used: u64,
        /// The size of a huge page.
        pub hugepages_size: u64,
        /// In use.
        pub used: u64,
        /// In all.
        pub total: u64,
    }

    /// The memory of one NUMA node.
    pub struct ResourcesMemoryNode {
        /// Its number.
        pub numa_node: u64,
        /// Huge pages in use.
        pub hugepages_used: u64,
        /// Memory set aside for huge pages.
        pub hugepages_total: u64,
        /// In use.
        pub used: u64,
        /// In all.
        pub total: u64,
    }

    /// Graphics cards.
    #[cfg_attr(feature = "openapi", schema(as = ResourcesGPU))]
    pub struct ResourcesGpu {
        /// The cards.
        pub cards: Vec<Value>,
        /// How many.
        pub total: u64,
    }

    /// Devices of some bus.
    pub struct ResourcesDevices {
        /// The devices.
        pub devices: Vec<Value>,
        /// How many.
        pub total: u64,
    }

    /// Network cards.
    pub struct ResourcesNetwork {
        /// The cards.
        pub cards: Vec<ResourcesNetworkCard>,
        /// How many.
        pub total: u64,
    }

    /// One network card; what is empty is left out.
    pub struct ResourcesNetworkCard {
        /// Its driver.
        #[serde(skip_serializing_if = "is_default")]
        pub driver: String,
        /// The driver's version.
        #[serde(skip_serializing_if = "is_default")]
        pub driver_version: String,
        /// Its ports.
        #[serde(skip_serializing_if = "is_default")]
        pub ports: Vec<ResourcesNetworkPort>,
        /// Its NUMA node.
        pub numa_node: u64,
        /// Where it sits.
        #[serde(skip_serializing_if = "is_default")]
        pub pci_address: String,
        /// The vendor's name.
        #[serde(skip_serializing_if = "is_default")]
        pub vendor: String,
        /// The vendor's number.
        #[serde(skip_serializing_if = "is_default")]
        pub vendor_id: String,
        /// The product's name.
        #[serde(skip_serializing_if = "is_default")]
        pub product: String,
        /// The product's number.
        #[serde(skip_serializing_if = "is_default")]
        pub product_id: String,
    }

    /// One port of a network card; what is empty is left out.
    #[cfg_attr(feature = "openapi", schema(as = ResourcesNetworkCardPort))]
    pub struct ResourcesNetworkPort {
        /// The link's name.
        pub id: String,
        /// The MAC address.
        #[serde(skip_serializing_if = "is_default")]
        pub address: String,
        /// The port's number.
        pub port: u64,
        /// "ethernet" or "infiniband".
        pub protocol: String,
        /// Whether it negotiates.
        pub auto_negotiation: bool,
        /// Whether a cable is in.
        pub link_detected: bool,
        /// Mbit/s.
        #[serde(skip_serializing_if = "is_default")]
        pub link_speed: u64,
        /// "full" or "half".
        #[serde(skip_serializing_if = "is_default")]
        pub link_duplex: String,
    }

    /// Disks.
    pub struct ResourcesStorage {
        /// The disks.
        pub disks: Vec<ResourcesStorageDisk>,
        /// How many.
        pub total: u64,
    }

    /// One disk; what is marked so is left out when empty.
    pub struct ResourcesStorageDisk {
        /// Its kernel name.
        pub id: String,
        /// Its device number.
        pub device: String,
        /// Its model; left out when unknown.
        #[serde(skip_serializing_if = "is_default")]
        pub model: String,
        /// "nvme", "virtio", "scsi", ...; left out when unknown.
        #[serde(rename = "type", skip_serializing_if = "is_default")]
        pub kind: String,
        /// Whether it can only be read.
        pub read_only: bool,
        /// Its size.
        pub size: u64,
        /// Whether it can be taken out.
        pub removable: bool,
        /// Its NUMA node.
        pub numa_node: u64,
        /// Its block size.
        pub block_size: u64,
        /// Turns per minute; 0 for solid state.
        pub rpm: u64,
        /// Its name under `/dev/disk/by-id`.
        pub device_id: String,
        /// Its partitions.
        pub partitions: Vec<ResourcesStoragePartition>,
        /// Its serial number; left out when unknown.
        #[serde(skip_serializing_if = "is_default")]
        pub serial: String,
        /// Where it sits; left out when unknown.
        #[serde(skip_serializing_if = "is_default")]
        pub pci_address: String,
    }

    /// One partition.
    #[cfg_attr(feature = "openapi", schema(as = ResourcesStorageDiskPartition))]
    pub struct ResourcesStoragePartition {
        /// Its kernel name.
        pub id: String,
        /// Its device number.
        pub device: String,
        /// Whether it can only be read.
        pub read_only: bool,
        /// Its size.
        pub size: u64,
        /// Its number.
        pub partition: u64,
    }

    /// PCI devices.
    #[cfg_attr(feature = "openapi", schema(as = ResourcesPCI))]
    pub struct ResourcesPci {
        /// The devices.
        pub devices: Vec<ResourcesPciDevice>,
        /// How many.
        pub total: u64,
    }

    /// One PCI device.
    #[cfg_attr(feature = "openapi", schema(as = ResourcesPCIDevice))]
    pub struct ResourcesPciDevice {
        /// Its driver.
        pub driver: String,
        /// The driver's version.
        pub driver_version: String,
        /// Its NUMA node.
        pub numa_node: u64,
        /// Where it sits.
        pub pci_address: String,
        /// The vendor's name.
        pub vendor: String,
        /// The vendor's number.
        pub vendor_id: String,
        /// The product's name.
        pub product: String,
        /// The product's number.
        pub product_id: String,
        /// Its IOMMU group.
        pub iommu_group: u64,
        /// Vital product data, `{}` without any.
        pub vpd: serde_json::Map<String, Value>,
    }

    /// The machine.
    pub struct ResourcesSystem {
        /// Its UUID.
        pub uuid: String,
        /// Its vendor.
        pub vendor: String,
        /// Its product name.
        pub product: String,
        /// Its family.
        pub family: String,
        /// Its version.
        pub version: String,
        /// Its stock keeping unit.
        pub sku: String,
        /// Its serial number.
        pub serial: String,
        /// "physical", "virtual-machine" or "container".
        #[serde(rename = "type")]
        pub kind: String,
        /// Its firmware.
        pub firmware: Option<Value>,
        /// Its chassis.
        pub chassis: Option<Value>,
        /// Its mainboard.
        pub motherboard: Option<Value>,
    }

    /// How busy the machine is; these names begin upper case on the wire.
    pub struct ResourcesLoad {
        /// Over one minute.
        #[serde(rename = "Average1Min")]
        pub average_1_min: f64,
        /// Over five minutes.
        #[serde(rename = "Average5Min")]
        pub average_5_min: f64,
        /// Over ten minutes.
        #[serde(rename = "Average10Min")]
        pub average_10_min: f64,
        /// Processes.
        #[serde(rename = "Processes")]
        pub processes: i64,
    }
}
