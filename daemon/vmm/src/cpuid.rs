//! What the CPUs say of themselves: what KVM can do on this host, the topology, and two changes: the timer that needs no
//! calibration, which KVM's own interrupt controller has on any host, and no nested virtualization, which is the largest
//! surface that KVM has towards a guest.

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, Kvm};
use vmm_sys_util::fam::FamStructWrapper;

/// CPUID.1:ECX.
const VMX: u32 = 1 << 5;
const TSC_DEADLINE: u32 = 1 << 24;
const HYPERVISOR: u32 = 1 << 31;
/// CPUID.1:EDX: there is more than one logical CPU in the package.
const HTT: u32 = 1 << 28;
/// CPUID.80000001:ECX.
const SVM: u32 = 1 << 2;
/// CPUID leaves of the extended topology (Intel SDM 2A; AMD APM 3).
const TOPOLOGY: u32 = 0xb;
const TOPOLOGY_V2: u32 = 0x1f;
/// `KVM_CPUID_FLAG_SIGNIFCANT_INDEX`.
const HAS_INDEX: u32 = 1;
/// Level types of the topology leaves.
const LEVEL_THREAD: u32 = 1;
const LEVEL_CORE: u32 = 2;

/// What this host's KVM can do, the same for each CPU.
pub struct Features {
    entries: Vec<kvm_cpuid_entry2>,
    cpus: u32,
}

impl Features {
    /// Asks KVM.
    ///
    /// # Errors
    /// What KVM says.
    pub fn new(kvm: &Kvm, cpus: u8) -> Result<Self, kvm_ioctls::Error> {
        let supported = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?;
        let deadline_timer = kvm.check_extension(Cap::TscDeadlineTimer);
        let mut entries = supported.as_slice().to_vec();
        entries.retain(|entry| !matches!(entry.function, TOPOLOGY | TOPOLOGY_V2));
        for entry in &mut entries {
            match entry.function {
                1 => {
                    entry.ecx = entry.ecx & !VMX | HYPERVISOR | if deadline_timer { TSC_DEADLINE } else { 0 };
                }
                0x8000_0001 => entry.ecx &= !SVM,
                0x8000_000a => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
                _ => {}
            }
        }
        Ok(Self { entries, cpus: cpus.into() })
    }

    /// What one CPU says. All are cores of one package, without threads, numbered from 0.
    ///
    /// # Errors
    /// If there are more entries than KVM takes.
    pub fn of(&self, cpu: u8) -> Result<CpuId, vmm_sys_util::fam::Error> {
        let cpu = u32::from(cpu);
        let mut entries = self.entries.clone();
        for entry in &mut entries {
            self.number(entry, cpu);
        }
        let bits = self.core_bits();
        for (index, shift, count, level) in [(0, 0, 1, LEVEL_THREAD), (1, bits, self.cpus, LEVEL_CORE)] {
            entries.push(kvm_cpuid_entry2 {
                function: TOPOLOGY,
                index,
                flags: HAS_INDEX,
                eax: shift,
                ebx: count,
                ecx: level << 8 | index,
                edx: cpu,
                ..Default::default()
            });
        }
        FamStructWrapper::from_entries(&entries)
    }

    /// How many bits of an APIC id tell cores apart.
    fn core_bits(&self) -> u32 {
        self.cpus.next_power_of_two().trailing_zeros()
    }

    fn number(&self, entry: &mut kvm_cpuid_entry2, cpu: u32) {
        let last = self.cpus - 1;
        match entry.function {
            1 => {
                entry.ebx = entry.ebx & 0xffff | self.cpus << 16 | cpu << 24;
                entry.edx = entry.edx & !HTT | if self.cpus > 1 { HTT } else { 0 };
            }
            // Intel's caches: how many CPUs share one, minus one (bits 14 to 25), and cores (bits 26 to 31), which has
            // room for 64. The first two levels are a core's own.
            4 if entry.eax & 0x1f != 0 => {
                let shared = if entry.eax >> 5 & 7 >= 3 { last } else { 0 };
                entry.eax = entry.eax & 0x3fff | shared << 14 | last.min(63) << 26;
            }
            // AMD's number of cores, minus one, and of bits.
            0x8000_0008 => entry.ecx = entry.ecx & !0xf0ff | last | self.core_bits() << 12,
            // AMD's caches, in the same way.
            0x8000_001d if entry.eax & 0x1f != 0 => {
                let shared = if entry.eax >> 5 & 7 >= 3 { last } else { 0 };
                entry.eax = entry.eax & 0x3fff | shared << 14;
            }
            0x8000_001e => (entry.eax, entry.ebx, entry.ecx) = (cpu, cpu, 0),
            _ => {}
        }
    }
}
