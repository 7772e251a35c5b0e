//! The configuration space of a function: registers of which a guest can change single bits (PCI 3.0, 6.1).

/// Bytes that have a meaning. The rest of the 4 KiB reads as zero: there are no extended capabilities.
const SIZE: usize = 256;
const COMMAND: usize = 0x04;
/// Memory accesses, bus mastery, no INTx.
const COMMAND_WRITABLE: u16 = 1 << 1 | 1 << 2 | 1 << 10;
const STATUS: usize = 0x06;
const STATUS_CAPABILITIES: u16 = 1 << 4;
const BAR0: usize = 0x10;
const FIRST_CAPABILITY: usize = 0x34;
/// Where the list of capabilities begins.
const CAPABILITIES: usize = 0x40;

/// A function's configuration space.
#[derive(Debug, Clone)]
pub struct Config {
    registers: [u8; SIZE],
    /// The bits that a guest can change.
    writable: [u8; SIZE],
    /// The size of the register window, or 0.
    window: u32,
    /// The guest wrote ones to the window's address and now reads its size (PCI 3.0, 6.2.5.1).
    sizing: bool,
    /// Where the next capability goes, and where its address goes.
    next: usize,
    link: usize,
}

impl Config {
    /// A function without a window or capabilities. `class` is class, subclass and interface, `subsystem` the
    /// subsystem's number.
    #[must_use]
    pub fn new(vendor: u16, device: u16, class: u32, subsystem: u16) -> Self {
        let mut config = Self {
            registers: [0; SIZE],
            writable: [0; SIZE],
            window: 0,
            sizing: false,
            next: CAPABILITIES,
            link: FIRST_CAPABILITY,
        };
        config.set(0x00, &vendor.to_le_bytes());
        config.set(0x02, &device.to_le_bytes());
        // The revision, 1, is below the class.
        config.set(0x08, &(class << 8 | 1).to_le_bytes());
        config.set(0x2c, &vendor.to_le_bytes());
        config.set(0x2e, &subsystem.to_le_bytes());
        config.allow(COMMAND, &COMMAND_WRITABLE.to_le_bytes());
        // Software notes the interrupt line here for itself.
        config.allow(0x3c, &[0xff]);
        config
    }

    /// Gives the function a window of 32-bit memory.
    pub fn set_window(&mut self, address: u32, size: u32) {
        self.window = size;
        self.set(BAR0, &address.to_le_bytes());
    }

    /// Adds a capability: its number and what follows the link to the next. Gives the place of the capability.
    ///
    /// # Panics
    /// If there is no room, which depends on this program alone.
    pub fn add_capability(&mut self, id: u8, body: &[u8]) -> usize {
        let at = self.next;
        assert!(at + 2 + body.len() <= SIZE, "too many capabilities");
        self.set(self.link, &[at as u8]);
        self.set(at, &[id, 0]);
        self.set(at + 2, body);
        self.set(STATUS, &STATUS_CAPABILITIES.to_le_bytes());
        self.link = at + 1;
        self.next = (at + 2 + body.len()).next_multiple_of(4);
        at
    }

    /// Lets a guest change these bits.
    pub fn allow(&mut self, at: usize, mask: &[u8]) {
        self.writable[at..at + mask.len()].copy_from_slice(mask);
    }

    fn set(&mut self, at: usize, bytes: &[u8]) {
        self.registers[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// A register of two bytes.
    #[must_use]
    pub fn word(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.registers[at], self.registers[at + 1]])
    }

    /// A guest reads.
    pub fn read(&self, register: usize, bytes: &mut [u8]) {
        let size = (!self.window.wrapping_sub(1)).to_le_bytes();
        for (at, byte) in (register..).zip(bytes) {
            *byte = match self.registers.get(at) {
                Some(_) if self.sizing && (BAR0..BAR0 + 4).contains(&at) => size[at - BAR0],
                Some(value) => *value,
                None => 0,
            };
        }
    }

    /// A guest writes.
    pub fn write(&mut self, register: usize, bytes: &[u8]) {
        if register == BAR0 && self.window != 0 {
            self.sizing = bytes == [0xff; 4];
        }
        for (at, byte) in (register..SIZE).zip(bytes) {
            self.registers[at] = self.registers[at] & !self.writable[at] | byte & self.writable[at];
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample() -> Config {
        let mut config = Config::new(0x1af4, 0x1042, 0x01_8000, 2);
        config.set_window(0xc000_8000, 0x8000);
        let msix = config.add_capability(0x11, &[0; 10]);
        config.allow(msix + 2, &[0, 0xc0]);
        config.add_capability(9, &[0; 14]);
        config
    }

    fn read(config: &Config, register: usize) -> u32 {
        let mut bytes = [0; 4];
        config.read(register, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    #[test]
    fn a_window_tells_its_size_and_stays_where_it_is() {
        let mut config = sample();
        assert_eq!(read(&config, BAR0), 0xc000_8000);
        config.write(BAR0, &[0xff; 4]);
        assert_eq!(read(&config, BAR0), 0xffff_8000);
        config.write(BAR0, &0xd000_0000u32.to_le_bytes());
        assert_eq!(read(&config, BAR0), 0xc000_8000);
        // There is no second one.
        config.write(BAR0 + 4, &[0xff; 4]);
        assert_eq!(read(&config, BAR0 + 4), 0);
    }

    #[test]
    fn the_list_of_capabilities_is_one_that_ends() {
        let config = sample();
        let (mut at, mut found) = (usize::from(config.registers[FIRST_CAPABILITY]), Vec::new());
        while at != 0 {
            found.push(config.registers[at]);
            at = config.registers[at + 1].into();
        }
        assert_eq!(found, [0x11, 9]);
    }

    proptest! {
        /// Whatever is written, only the bits that may change do, and nothing panics.
        #[test]
        fn only_what_may_change_does(
            writes in prop::collection::vec((0usize..5000, prop::collection::vec(any::<u8>(), 0..9)), 0..50),
        ) {
            let (before, mut config) = (sample(), sample());
            for (register, bytes) in writes {
                config.write(register, &bytes);
                let mut read = vec![0; bytes.len()];
                config.read(register, &mut read);
            }
            for at in 0..SIZE {
                prop_assert_eq!((before.registers[at] ^ config.registers[at]) & !before.writable[at], 0);
            }
        }
    }
}
