//! The server itself, `/1.0`.

use std::collections::BTreeMap;

use super::is_default;

wire! {
    /// `GET /1.0`.
    pub struct Server {
        /// Its keys.
        pub config: BTreeMap<String, String>,
        /// What it can do beyond the first version of the API.
        pub api_extensions: Vec<String>,
        /// "stable".
        pub api_status: String,
        /// "1.0".
        pub api_version: String,
        /// "trusted" or "untrusted".
        pub auth: String,
        /// Whether it only serves images.
        pub public: bool,
        /// How remote clients prove themselves.
        pub auth_methods: Vec<String>,
        /// Who is asking; left out when empty.
        #[serde(skip_serializing_if = "is_default")]
        pub auth_user_name: String,
        /// By which method they were let in; left out when empty.
        #[serde(skip_serializing_if = "is_default")]
        pub auth_user_method: String,
        /// The machine and the daemon.
        pub environment: ServerEnvironment,
    }

    /// The machine and the daemon.
    pub struct ServerEnvironment {
        /// The addresses it listens on.
        pub addresses: Vec<String>,
        /// The architectures it can run.
        pub architectures: Vec<String>,
        /// Its certificate, PEM.
        pub certificate: String,
        /// SHA-256 of the certificate, in hex.
        pub certificate_fingerprint: String,
        /// The instance drivers, joined by " | ".
        pub driver: String,
        /// Their versions, joined likewise.
        pub driver_version: String,
        /// "nftables".
        pub firewall: String,
        /// "Linux".
        pub kernel: String,
        /// The kernel's architecture.
        pub kernel_architecture: String,
        /// What the kernel can do; the values are "true" or "false".
        pub kernel_features: BTreeMap<String, String>,
        /// The kernel's release.
        pub kernel_version: String,
        /// What the container runtime can do.
        pub lxc_features: BTreeMap<String, String>,
        /// The host's distribution.
        pub os_name: String,
        /// Its version.
        pub os_version: String,
        /// The project of the request.
        pub project: String,
        /// Which server this is, "incus" for Incus.
        pub server: String,
        /// Whether it is in a cluster.
        pub server_clustered: bool,
        /// How cluster members pass events.
        pub server_event_mode: String,
        /// The host's name.
        pub server_name: String,
        /// The daemon's process id.
        pub server_pid: i64,
        /// The daemon's version.
        pub server_version: String,
        /// The storage drivers in use, joined by " | ".
        pub storage: String,
        /// Their versions, joined likewise.
        pub storage_version: String,
        /// The storage drivers there are.
        pub storage_supported_drivers: Vec<ServerStorageDriver>,
    }

    /// A storage driver.
    pub struct ServerStorageDriver {
        /// Its name.
        #[serde(rename = "Name")]
        pub name: String,
        /// Its version.
        #[serde(rename = "Version")]
        pub version: String,
        /// Whether its storage is shared by servers.
        #[serde(rename = "Remote")]
        pub remote: bool,
    }

    /// `PUT /1.0`: the keys as a whole; `PATCH /1.0` merges them.
    pub struct ServerPut {
        /// The keys.
        pub config: BTreeMap<String, String>,
    }
}
