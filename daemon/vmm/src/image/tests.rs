//! Layers against a plain array, and images that lie.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use proptest::prelude::*;
use tempfile::TempDir;
use vm_memory::{Bytes, GuestAddress};

use super::header::HeaderError;
use super::make::{Backing, CLUSTER, MAX_SIZE, make, make_with};
use super::storage::Event;
use super::*;
use crate::memory::{Memory, allocate};

/// Whether there is qemu-img to ask for a second opinion.
static QEMU_IMG: LazyLock<bool> = LazyLock::new(|| {
    let found = Command::new("qemu-img").arg("--version").output().is_ok();
    if !found {
        eprintln!("skipped: qemu-img (package qemu-utils) is not there to check the images");
    }
    found
});

fn qemu_img(arguments: &[&str], files: &[&Path]) {
    if *QEMU_IMG {
        let output = Command::new("qemu-img").args(arguments).args(files).output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&text));
    }
}

fn open(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).unwrap()
}

/// A disk in a directory, and the plain array that it should be.
struct Model {
    dir: TempDir,
    layers: Vec<(PathBuf, Format)>,
    cluster: u64,
    image: Image,
    memory: Memory,
    bytes: Vec<u8>,
}

impl Model {
    /// A raw layer and a qcow2 one over it.
    fn new(base: usize, size: usize, cluster: u64) -> Self {
        // In memory if that can be: nothing here depends on what a disk keeps, and there are thousands of flushes.
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let raw = dir.path().join("0");
        let mut bytes: Vec<u8> = (0..base).map(|at| (at / 512 % 251) as u8 + 1).collect();
        std::fs::write(&raw, &bytes).unwrap();
        bytes.resize(size, 0);
        let image = Image::Raw(open(&raw));
        let layers = vec![(raw, Format::Raw)];
        let mut model = Self { dir, layers, cluster, image, memory: allocate(32 << 20).unwrap(), bytes };
        model.snapshot();
        model
    }

    /// Puts a new layer on top.
    fn snapshot(&mut self) {
        let path = self.dir.path().join(self.layers.len().to_string());
        let (below, format) = &self.layers[0];
        let size = if *format == Format::Raw { below.metadata().unwrap().len() } else { self.bytes.len() as u64 };
        let backing = Backing { name: below.to_str().unwrap(), format: *format, size };
        let told = make_with(open(&path), self.bytes.len() as u64, Some(backing), self.cluster).unwrap();
        self.bytes.resize(told as usize, 0);
        self.layers.insert(0, (path, Format::Qcow2));
        self.reopen();
    }

    fn layers(&self) -> Vec<Layer> {
        self.layers.iter().map(|(path, format)| Layer { file: open(path), format: *format }).collect()
    }

    fn reopen(&mut self) {
        // What is in this process alone is lost with it.
        self.image.settle().unwrap();
        let (image, size) = Image::open(self.layers(), false).unwrap();
        assert_eq!(size, self.bytes.len() as u64);
        self.image = image;
    }

    fn read(&self, at: usize, len: usize) -> Vec<u8> {
        self.memory.write_slice(&vec![0xee; len], GuestAddress(0)).unwrap();
        // In two pieces, one of them not aligned to anything.
        let cut = len / 3;
        self.image.read(Buffers::over(&self.memory, &[(0, cut), (cut as u64, len - cut)]), at as u64).unwrap();
        let mut bytes = vec![0; len];
        self.memory.read_slice(&mut bytes, GuestAddress(0)).unwrap();
        bytes
    }

    fn write(&mut self, at: usize, bytes: &[u8]) {
        let (cut, len) = (bytes.len() / 3, bytes.len());
        self.memory.write_slice(bytes, GuestAddress(0)).unwrap();
        self.image.write(Buffers::over(&self.memory, &[(0, cut), (cut as u64, len - cut)]), at as u64).unwrap();
        self.bytes[at..at + len].copy_from_slice(bytes);
    }

    fn run(&mut self, step: &Step) {
        let size = self.bytes.len();
        // Whole sectors within the disk.
        let range = |at: u32, len: u32| {
            let at = at as usize % (size / 512) * 512;
            (at, (len as usize * 512).min(size - at))
        };
        match *step {
            Step::Write(at, len, byte) => {
                let (at, len) = range(at, len);
                let bytes: Vec<u8> = (0..len).map(|index| byte.wrapping_add((index / 512) as u8)).collect();
                self.write(at, &bytes);
            }
            Step::Read(at, len) => {
                let (at, len) = range(at, len);
                assert!(self.read(at, len) == self.bytes[at..at + len], "{step:?}");
            }
            Step::Discard(at, len) => {
                let (at, len) = range(at, len);
                self.image.discard(at as u64, len as u64).unwrap();
                let now = self.read(at, len);
                let known = now.iter().zip(&self.bytes[at..]).all(|(now, before)| *now == 0 || now == before);
                assert!(known, "{step:?}");
                self.bytes[at..at + len].copy_from_slice(&now);
            }
            Step::Zero(at, len, unmap) => {
                let (at, len) = range(at, len);
                self.image.write_zeroes(at as u64, len as u64, unmap).unwrap();
                self.bytes[at..at + len].fill(0);
            }
            Step::Flush => self.image.flush().unwrap(),
            Step::Reopen => self.reopen(),
            Step::Snapshot if self.layers.len() < 5 => self.snapshot(),
            Step::Snapshot => {}
        }
    }

    /// Compares all, here and by QEMU.
    fn check(&mut self) {
        assert!(self.read(0, self.bytes.len()) == self.bytes);
        self.reopen();
        assert!(self.read(0, self.bytes.len()) == self.bytes);
        let plain = self.dir.path().join("plain");
        std::fs::write(&plain, &self.bytes).unwrap();
        for (path, format) in &self.layers {
            if *format == Format::Qcow2 {
                qemu_img(&["check", "-q", "-f", "qcow2"], &[path]);
            }
        }
        qemu_img(&["compare", "-q", "-f", "qcow2", "-F", "raw"], &[&self.layers[0].0, &plain]);
    }
}

#[derive(Debug, Clone)]
enum Step {
    Write(u32, u32, u8),
    Read(u32, u32),
    Discard(u32, u32),
    Zero(u32, u32, bool),
    Flush,
    Reopen,
    Snapshot,
}

fn step() -> impl Strategy<Value = Step> {
    let len = || prop_oneof![1u32..9, 1u32..400, 100u32..5000];
    prop_oneof![
        6 => (any::<u32>(), len(), any::<u8>()).prop_map(|(at, len, byte)| Step::Write(at, len, byte)),
        4 => (any::<u32>(), len()).prop_map(|(at, len)| Step::Read(at, len)),
        2 => (any::<u32>(), len()).prop_map(|(at, len)| Step::Discard(at, len)),
        2 => (any::<u32>(), len(), any::<bool>()).prop_map(|(at, len, unmap)| Step::Zero(at, len, unmap)),
        1 => Just(Step::Flush),
        1 => Just(Step::Reopen),
        1 => Just(Step::Snapshot),
    ]
}

/// So many cases, unless the environment says how many (`PROPTEST_CASES`).
fn config(cases: u32) -> ProptestConfig {
    let config = ProptestConfig { max_shrink_iters: 500, ..ProptestConfig::default() };
    if std::env::var_os("PROPTEST_CASES").is_some() { config } else { ProptestConfig { cases, ..config } }
}

proptest! {
    #![proptest_config(config(24))]

    #[test]
    fn layers_are_a_plain_array(
        base in 1usize..5000,
        more in 0usize..6000,
        bits in 12u32..17,
        steps in prop::collection::vec(step(), 1..60),
    ) {
        let mut model = Model::new(base * 512, (base + more) * 512, 1 << bits);
        steps.iter().for_each(|step| model.run(step));
        model.check();
    }
}

#[test]
fn queues_write_to_the_same_clusters_at_the_same_time() {
    let mut model = Model::new(1 << 20, 4 << 20, CLUSTER);
    let (image, memory) = (&model.image, &model.memory);
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            scope.spawn(move || {
                let place = (thread + 1) << 20;
                memory.write_slice(&[0xa0 + thread as u8; 512], GuestAddress(place)).unwrap();
                // Each writes its own of four sectors, and each reads and flushes in between.
                for sector in (0..8192u64).filter(|sector| sector % 4 == thread) {
                    image.write(Buffers::over(memory, &[(place, 512)]), sector * 512).unwrap();
                    image.read(Buffers::over(memory, &[(place + 4096, 4096)]), sector / 8 * 4096).unwrap();
                    if sector % 512 == thread {
                        image.flush().unwrap();
                    }
                }
            });
        }
    });
    let written = (0..8192usize).flat_map(|sector| [0xa0 + (sector % 4) as u8; 512]);
    model.bytes = written.collect();
    model.check();
}

#[test]
fn what_is_discarded_gives_its_room_back() {
    let mut model = Model::new(512, 8 << 20, CLUSTER);
    let used = |model: &Model| {
        use std::os::unix::fs::MetadataExt;
        model.layers[0].0.metadata().unwrap().blocks() * 512
    };
    model.write(0, &vec![7; 4 << 20]);
    model.image.flush().unwrap();
    let full = used(&model);
    assert!(full >= 4 << 20);
    model.run(&Step::Discard(0, 8192));
    assert!(used(&model) < full - (3 << 20), "{full} bytes before, {} now", used(&model));
    // And the clusters are used again.
    let len = model.layers[0].0.metadata().unwrap().len();
    model.write(0, &vec![8; 4 << 20]);
    assert_eq!(model.layers[0].0.metadata().unwrap().len(), len);
    model.check();
}

#[test]
fn compressed_clusters_and_older_versions_are_read() {
    if !*QEMU_IMG {
        return;
    }
    let mut model = Model::new(1 << 20, 1 << 20, CLUSTER);
    let packed = model.dir.path().join("packed");
    qemu_img(&["convert", "-c", "-O", "qcow2", "-o", "compat=0.10"], &[&model.layers[1].0, &packed]);
    let top = model.dir.path().join("top");
    let backing = Backing { name: packed.to_str().unwrap(), format: Format::Qcow2, size: 1 << 20 };
    make(open(&top), 1 << 20, Some(backing)).unwrap();
    model.layers = vec![(top, Format::Qcow2), (packed.clone(), Format::Qcow2)];
    model.reopen();
    model.write(70_000, &[1; 100_000]);
    model.check();
    // One that QEMU has made is written to, too.
    let made = model.dir.path().join("made");
    let options = ["create", "-q", "-f", "qcow2", "-b", packed.to_str().unwrap(), "-F", "qcow2"];
    qemu_img(&options, &[&made]);
    model.layers[0].0 = made;
    model.bytes = (0..1 << 20).map(|at| (at / 512 % 251) as u8 + 1).collect();
    model.reopen();
    for at in (0..10).map(|index| index * 99_840) {
        model.run(&Step::Write(at / 512, 50, 3));
        model.run(&Step::Discard(at / 512 + 200, 150));
    }
    model.check();
    let alone = |read_only| Image::open(vec![Layer { file: open(&packed), format: Format::Qcow2 }], read_only);
    assert!(alone(true).is_ok());
    assert!(alone(false).unwrap_err().to_string().contains("version 3 is served"));
}

#[test]
fn a_new_image_has_the_size_that_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    let backing = |size| Some(Backing { name: "base", format: Format::Raw, size });
    for (size, backing) in [(0, None), (MAX_SIZE + 1, None), (4096, backing(4097))] {
        assert_eq!(make(open(&path), size, backing).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
    assert_eq!(make(open(&path), (10 << 30) + 1, None).unwrap(), (10 << 30) + CLUSTER);
    assert!(make(open(&path), 1 << 20, None).unwrap_err().to_string().contains("empty file"));
    let (image, size) = Image::open(vec![Layer { file: open(&path), format: Format::Qcow2 }], false).unwrap();
    assert_eq!(size, (10 << 30) + CLUSTER);
    drop(image);
    qemu_img(&["check", "-q", "-f", "qcow2"], &[&path]);
    assert!(path.metadata().unwrap().len() < 1 << 20);
    let largest = dir.path().join("largest");
    make(open(&largest), MAX_SIZE, None).unwrap();
    Image::open(vec![Layer { file: open(&largest), format: Format::Qcow2 }], false).unwrap();
}

/// A small image with some data: its bytes.
fn sample() -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    make_with(open(&path), 4 << 20, None, 4096).unwrap();
    let (image, _) = Image::open(vec![Layer { file: open(&path), format: Format::Qcow2 }], false).unwrap();
    let memory = allocate(16 << 20).unwrap();
    for at in [0, 12_288, 2 << 20, 3 << 20] {
        image.write(Buffers::over(&memory, &[(0, 20_000)]), at).unwrap();
    }
    image.flush().unwrap();
    drop(image);
    std::fs::read(path).unwrap()
}

fn layer(bytes: &[u8]) -> Layer {
    let file = tempfile::tempfile().unwrap();
    file.write_all_at(bytes, 0).unwrap();
    Layer { file, format: Format::Qcow2 }
}

#[test]
fn what_is_not_served_is_refused_in_a_sentence() {
    let good = sample();
    assert!(Image::open(vec![layer(&good)], false).is_ok());
    let refused = |changes: &[(usize, &[u8])], words: &str| {
        let mut bytes = good.clone();
        changes.iter().for_each(|(at, new)| bytes[*at..at + new.len()].copy_from_slice(new));
        let error = Image::open(vec![layer(&bytes)], false).unwrap_err().to_string();
        assert!(error.contains(words) && error.starts_with("layer 0"), "{words}: {error}");
    };
    let word = |value: u32| value.to_be_bytes();
    let long = |value: u64| value.to_be_bytes();
    refused(&[(0, b"x")], "no qcow2 image");
    refused(&[(4, &word(4))], "version 4");
    refused(&[(4, &word(2))], "version 2");
    refused(&[(20, &word(9))], "2^9 bytes");
    refused(&[(20, &word(21))], "2^21 bytes");
    refused(&[(20, &word(u32::MAX))], "bytes");
    refused(&[(24, &long(u64::MAX))], "size");
    refused(&[(32, &word(2))], "encrypted");
    refused(&[(72, &long(1))], "not closed cleanly");
    refused(&[(72, &long(2))], "corrupt");
    refused(&[(72, &long(4))], "another file");
    refused(&[(72, &long(8))], "compressed");
    refused(&[(72, &long(16))], "subclusters");
    refused(&[(72, &long(1 << 40))], "not known");
    refused(&[(96, &word(0))], "reference counts");
    refused(&[(96, &word(6))], "reference counts");
    refused(&[(100, &word(u32::MAX - 7))], "header's length");
    refused(&[(60, &word(1))], "snapshots");
    refused(&[(36, &word(u32::MAX))], "larger");
    refused(&[(36, &word(0))], "table of mappings");
    refused(&[(40, &long(0))], "table of mappings");
    refused(&[(40, &long(u64::MAX - 4095))], "table of mappings");
    refused(&[(40, &long(1 << 40))], "table of mappings");
    refused(&[(40, &long(512))], "table of mappings");
    refused(&[(48, &long(1 << 40))], "table of reference counts");
    refused(&[(56, &word(0))], "table of reference counts");
    refused(&[(56, &word(u32::MAX))], "larger");
    refused(&[(8, &long(200)), (16, &word(2000))], "backing file's name");
    refused(&[(8, &long(u64::MAX)), (16, &word(8))], "backing file's name");
    refused(&[(8, &long(200)), (16, &word(8))], "no layer below");
    // The first extension is the table of feature names. The library would panic over the end of its last name.
    assert_eq!(good[104..108], word(0x6803_f857));
    refused(&[(108, &word(1))], "feature names");
    refused(&[(108, &word(u32::MAX))], "header extensions");
    refused(&[(104, &word(0x4441_5441))], "another file");
    let mappings = u64::from_be_bytes(*good[40..].first_chunk().unwrap()) as usize;
    let counts = u64::from_be_bytes(*good[48..].first_chunk().unwrap()) as usize;
    let first: [u8; 8] = *good[mappings..].first_chunk().unwrap();
    refused(&[(mappings, &long(1 << 40))], "table of mappings");
    refused(&[(mappings + 8, &first)], "table of mappings");
    refused(&[(counts, &long(0))], "table of reference counts");
    refused(&[(counts + 8, &good[counts..counts + 8])], "table of reference counts");
    let short = Image::open(vec![layer(&good[..50])], false).unwrap_err();
    assert!(matches!(short, ImageError::Header { source: HeaderError::Other, .. }));
    assert!(matches!(
        Image::open(vec![layer(b"")], true).unwrap_err(),
        ImageError::Header { source: HeaderError::Other, .. }
    ));
}

#[test]
fn layers_that_do_not_fit_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (raw, top) = (dir.path().join("raw"), dir.path().join("top"));
    std::fs::write(&raw, [1; 8192]).unwrap();
    make(open(&top), 8192, Some(Backing { name: "raw", format: Format::Raw, size: 8192 })).unwrap();
    let refused = |layers: &[(&Path, Format)], words: &str| {
        let layers = layers.iter().map(|(path, format)| Layer { file: open(path), format: *format }).collect();
        let error = Image::open(layers, false).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    };
    refused(&[], "1 to 32 layers");
    refused(&[(&top, Format::Raw), (&raw, Format::Raw)], "only be the last");
    refused(&[(&top, Format::Qcow2)], "no layer below");
    refused(&[(&top, Format::Qcow2), (&top, Format::Qcow2)], "same file");
    refused(&[(&raw, Format::Qcow2)], "no qcow2");
    let sample = dir.path().join("sample");
    std::fs::write(&sample, self::sample()).unwrap();
    refused(&[(&sample, Format::Qcow2), (&raw, Format::Raw)], "names no backing file");
    refused(&[(&top, Format::Qcow2), (&sample, Format::Qcow2)], "\"raw\"");
    // A guest's raw disk is raw, whatever it wrote to it.
    let (_, size) = Image::open(vec![Layer { file: open(&top), format: Format::Raw }], false).unwrap();
    assert_eq!(size, top.metadata().unwrap().len());
}

#[test]
fn a_table_that_is_not_counted_is_not_given_away() {
    let mut bytes = sample();
    let long = |at: usize| u64::from_be_bytes(*bytes[at..].first_chunk().unwrap()) as usize;
    let (table, block) = (long(long(40)) & !(1 << 63), long(long(48)));
    let count = block + table / 4096 * 2;
    assert_eq!(bytes[count..count + 2], [0, 1]);
    bytes[count..count + 2].fill(0);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    std::fs::write(&path, &bytes).unwrap();
    let layer = || vec![Layer { file: open(&path), format: Format::Qcow2 }];
    // Whoever only reads leaves it as it is.
    drop(Image::open(layer(), true).unwrap());
    assert!(std::fs::read(&path).unwrap() == bytes);
    drop(Image::open(layer(), false).unwrap());
    assert_eq!(std::fs::read(&path).unwrap()[count..count + 2], [0, 1]);
    qemu_img(&["check", "-q", "-f", "qcow2"], &[&path]);
}

/// Does to an image what a guest can, and ignores what comes of it.
fn exercise(bytes: &[u8], memory: &Memory, read_only: bool) {
    let layer = layer(bytes);
    let file = layer.file.try_clone().unwrap();
    let Ok((image, size)) = Image::open(vec![layer], read_only) else { return };
    let last = size.saturating_sub(8192);
    for at in [0, 8192, 16_384, 1 << 20, 2 << 20, (3 << 20) + 4096, last] {
        let at = at.min(last);
        let len = size.min(8192) as usize;
        let _ = image.read(Buffers::over(memory, &[(0, len)]), at);
        if !read_only {
            let _ = image.write(Buffers::over(memory, &[(8192, len.min(1024))]), at);
            let _ = image.write_zeroes(at, len as u64, at % 3 == 0);
            let _ = image.write(Buffers::over(memory, &[(8192, len)]), at);
            let _ = image.discard(at, len as u64);
        }
    }
    let _ = image.flush();
    let _ = image.settle();
    drop(image);
    if read_only {
        let mut now = vec![0; bytes.len()];
        file.read_exact_at(&mut now, 0).unwrap();
        assert!(now == bytes, "an image that is only read was written to");
    }
    assert!(file.metadata().unwrap().len() <= bytes.len() as u64 + size / 8 * 9 + (16 << 20));
}

/// A number that goes badly with others.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        (0u64..64).prop_map(|bit| 1 << bit),
        (0u64..40).prop_map(|cluster| cluster << 12),
        (0u64..40).prop_map(|cluster| cluster << 12 | 1 << 63),
        (0u64..40).prop_map(|cluster| cluster << 12 | 1),
        (0u64..40).prop_map(|cluster| cluster << 12 | 1 << 62),
        any::<u64>().prop_map(|number| number & 0x80ff_ffff_ffff_f000),
        Just(u64::MAX),
        Just(0),
    ]
}

proptest! {
    #![proptest_config(config(300))]

    #[test]
    fn hostile_headers_harm_nobody(
        fields in prop::collection::vec((0usize..60, number(), any::<bool>()), 1..5),
        cut in prop::option::weighted(0.1, any::<prop::sample::Index>()),
        read_only in any::<bool>(),
    ) {
        static SAMPLE: LazyLock<Vec<u8>> = LazyLock::new(sample);
        let mut bytes = SAMPLE.clone();
        for (word, value, wide) in fields {
            if wide {
                bytes[word * 4..word * 4 + 8].copy_from_slice(&value.to_be_bytes());
            } else {
                bytes[word * 4..word * 4 + 4].copy_from_slice(&(value as u32).to_be_bytes());
            }
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        exercise(&bytes, &allocate(16 << 20).unwrap(), read_only);
    }

    #[test]
    fn hostile_tables_harm_nobody(
        entries in prop::collection::vec((any::<prop::sample::Index>(), 0usize..24, number()), 1..12),
        read_only in any::<bool>(),
    ) {
        static SAMPLE: LazyLock<Vec<u8>> = LazyLock::new(sample);
        let mut bytes = SAMPLE.clone();
        // Every cluster that is a table: of counts, counts, of mappings, mappings.
        let long = |at: usize| u64::from_be_bytes(*bytes[at..].first_chunk().unwrap());
        let (mappings, counts) = (long(40) as usize, long(48) as usize);
        let mut tables = vec![mappings, counts, long(counts) as usize];
        tables.extend((0..2).map(|entry| (long(mappings + entry * 8) & !(1 << 63)) as usize));
        for (table, entry, value) in entries {
            let at = tables[table.index(tables.len())] + entry * 8;
            bytes[at..at + 8].copy_from_slice(&value.to_be_bytes());
        }
        exercise(&bytes, &allocate(16 << 20).unwrap(), read_only);
    }
}

/// What a sector has after its so many-th write: nowhere else, and never zeroes.
fn sector(number: usize, version: u8) -> Vec<u8> {
    format!("{number:07} {version:07}\n").repeat(32).into_bytes()
}

proptest! {
    #![proptest_config(config(16))]

    /// A host loses power: of what was written since the disk was last told to keep it, any part may be missing.
    #[test]
    fn a_host_may_lose_power_at_any_time(
        steps in prop::collection::vec((0u8..8, any::<u32>(), 1u32..200), 1..40),
        crashes in prop::collection::vec((any::<prop::sample::Index>(), any::<u64>()), 4),
    ) {
        const SECTORS: usize = 4608;
        let mut model = Model::new(512, SECTORS * 512, 4096);
        // Below, each sector has its version 0.
        let base: Vec<u8> = (0..SECTORS).flat_map(|number| sector(number, 0)).collect();
        std::fs::write(&model.layers[1].0, &base).unwrap();
        model.reopen();
        model.bytes = base;
        let start = std::fs::read(&model.layers[0].0).unwrap();
        let log = |model: &Model| match &model.image {
            Image::Chain(chain) => chain.log(),
            Image::Raw(_) => panic!("layers are no raw disk"),
        };
        let (mut versions, mut gone) = (vec![0u8; SECTORS], vec![false; SECTORS]);
        let mut ever_gone = gone.clone();
        // How long the log was when a flush was done, and which version each sector had.
        let mut flushed = vec![(0, versions.clone(), gone.clone())];
        for (kind, at, len) in steps {
            let at = at as usize % SECTORS;
            let range = at..(at + len as usize).min(SECTORS);
            match kind {
                0..5 => {
                    range.clone().for_each(|number| (versions[number], gone[number]) = (versions[number] + 1, false));
                    let bytes: Vec<u8> = range.flat_map(|number| sector(number, versions[number])).collect();
                    model.write(at * 512, &bytes);
                }
                5 => {
                    model.run(&Step::Discard(at as u32, range.len() as u32));
                    range.for_each(|number| (gone[number], ever_gone[number]) = (true, true));
                }
                _ => {
                    model.run(&Step::Flush);
                    flushed.push((log(&model).len(), versions.clone(), gone.clone()));
                }
            }
        }
        model.image.settle().unwrap();
        let log = log(&model);
        for (index, chance) in crashes {
            let end = index.index(log.len() + 1);
            let kept = log[..end].iter().rposition(|event| matches!(event, Event::Sync)).unwrap_or(0);
            let mut disk = start.clone();
            for (number, event) in log[..end].iter().enumerate() {
                if let Event::Write(offset, bytes) = event
                    && (number < kept || chance >> (number % 64) & 1 == 1)
                {
                    let (from, to) = (*offset as usize, *offset as usize + bytes.len());
                    disk.resize(disk.len().max(to), 0);
                    disk[from..to].copy_from_slice(bytes);
                }
            }
            let path = model.dir.path().join("crashed");
            std::fs::write(&path, &disk).unwrap();
            let layers = [(&path, Format::Qcow2), (&model.layers[1].0, Format::Raw)];
            let layers = layers.map(|(path, format)| Layer { file: open(path), format });
            let lost = std::mem::replace(&mut model.image, Image::open(layers.into(), false).unwrap().0);
            let now = model.read(0, SECTORS * 512);
            drop(std::mem::replace(&mut model.image, lost));
            // Once it was opened again, no cluster is counted less than it is used.
            if *QEMU_IMG {
                let check = Command::new("qemu-img").args(["check", "-f", "qcow2"]).arg(&path).output().unwrap();
                // 3: clusters are lost, but none is broken.
                prop_assert!(
                    [Some(0), Some(3)].contains(&check.status.code()), "{}", String::from_utf8_lossy(&check.stdout)
                );
            }
            let (_, then, gone_then) = flushed.iter().rfind(|(len, ..)| *len <= end).unwrap();
            for (number, found) in now.chunks(512).enumerate() {
                // Each sector has one of its own versions, no older than what was flushed; one that was discarded since
                // may have any, or none.
                let zero = found.iter().all(|byte| *byte == 0);
                let oldest = if gone_then[number] { 0 } else { then[number] };
                let known = (oldest..=versions[number]).any(|version| found == sector(number, version));
                prop_assert!(known || (zero && ever_gone[number]), "sector {}: {:?}", number, &found[..11]);
            }
        }
    }
}

/// Times raw against a qcow2 layer over raw. Run it in a release build, alone:
/// `cargo test --release -p duet-vmm --lib -- --ignored --nocapture how_fast`.
#[test]
#[ignore = "a measurement, of which only the ratios mean anything"]
fn how_fast_layers_are() {
    const SIZE: usize = 512 << 20;
    let dir = tempfile::tempdir_in(std::env::var_os("DUET_MEASURE_DIR").unwrap_or(".".into())).unwrap();
    let memory = allocate(16 << 20).unwrap();
    let raw = dir.path().join("raw");
    let fresh = |name: &str| {
        let path = dir.path().join(name);
        let backing = Backing { name: "raw", format: Format::Raw, size: SIZE as u64 };
        make(open(&path), SIZE as u64, Some(backing)).unwrap();
        path
    };
    let contents: Vec<u8> = (0..SIZE).map(|at| (at >> 9) as u8 | 1).collect();
    std::fs::write(&raw, &contents).unwrap();
    let chain = |path: &Path| {
        let layers = [(path, Format::Qcow2), (&*raw, Format::Raw)];
        let layers = layers.map(|(path, format)| Layer { file: open(path), format });
        Image::open(layers.into(), false).unwrap().0
    };
    let plain = Image::open(vec![Layer { file: open(&raw), format: Format::Raw }], false).unwrap().0;
    let (below, written) = (chain(&fresh("below")), chain(&fresh("written")));
    for at in (0..SIZE).step_by(1 << 20) {
        written.write(Buffers::over(&memory, &[(0, 1 << 20)]), at as u64).unwrap();
    }
    written.flush().unwrap();
    // A pseudo-random order that is the same for all.
    let places = |len: usize| (0..20_000u64).map(move |index| index.wrapping_mul(0x9e37_79b9) % (SIZE / len) as u64);
    let time = |name: &str, image: &Image, write: bool, len: usize, random: bool| {
        let started = std::time::Instant::now();
        let mut one = |at: u64| {
            let buffers = Buffers::over(&memory, &[(0, len)]);
            if write { image.write(buffers, at * len as u64) } else { image.read(buffers, at * len as u64) }.unwrap();
        };
        if random {
            places(len).for_each(&mut one)
        } else {
            (0..(SIZE / len) as u64).for_each(&mut one)
        }
        let (taken, count) = (started.elapsed(), if random { 20_000 } else { SIZE / len });
        image.flush().unwrap();
        let (mib, each) = ((count * len) >> 20, taken.as_secs_f64() * 1e6 / count as f64);
        println!(
            "{name:40} {:8.0} MiB/s {each:8.2} us each, with the flush {:6.0} ms",
            mib as f64 / taken.as_secs_f64(),
            started.elapsed().as_secs_f64() * 1e3
        );
    };
    for round in 0..3 {
        let (new, newer) = (chain(&fresh(&format!("new{round}"))), chain(&fresh(&format!("newer{round}"))));
        for (what, write, len, random) in [
            ("read, 1 MiB in order", false, 1 << 20, false),
            ("read, 4 KiB at random", false, 4096, true),
            ("write, 1 MiB in order", true, 1 << 20, false),
            ("write, 4 KiB at random", true, 4096, true),
        ] {
            time(&format!("raw: {what}"), &plain, write, len, random);
            time(&format!("layer, its own: {what}"), &written, write, len, random);
            match write {
                false => time(&format!("layer, from below: {what}"), &below, write, len, random),
                true => {
                    time(&format!("layer, new: {what}"), if random { &new } else { &newer }, write, len, random);
                }
            }
        }
    }
}
