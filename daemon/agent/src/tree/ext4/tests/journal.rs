//! Disks whose journal was not written back, as debugfs(8) makes them.

use super::*;

/// A file of ten blocks of the letter a, and where its blocks are.
fn file() -> (tempfile::TempDir, Vec<usize>) {
    let root = tempfile::tempdir().unwrap();
    fs::write(root.path().join("file"), [b'a'; 10 * 4096]).unwrap();
    let first = first_block(&disk(&root), "/file");
    (root, (first..first + 10).collect())
}

/// The first letter of each block of the file, on a disk with these transactions; what is written are letters.
fn letters(disk: &[u8], open: &str, transactions: &[(&str, usize, Option<u8>)]) -> String {
    let content = tempfile::tempdir().unwrap();
    let mut script = format!("{open}\n");
    for (number, (verb, block, letter)) in transactions.iter().enumerate() {
        let path = content.path().join(number.to_string());
        if let Some(letter) = letter {
            fs::write(&path, [*letter; 4096]).unwrap();
            script += &format!("jw {verb} {block} {}\n", path.display());
        } else {
            script += &format!("jw {verb} {block}\n");
        }
    }
    let disk = with_script(disk, &format!("{script}jc\n"));
    read_letters(&disk)
}

fn with_script(disk: &[u8], script: &str) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let (file, commands) = (dir.path().join("disk"), dir.path().join("commands"));
    fs::write(&file, disk).unwrap();
    fs::write(&commands, script).unwrap();
    let output = Command::new("debugfs").arg("-w").arg("-f").args([&commands, &file]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let disk = fs::read(&file).unwrap();
    assert_eq!(disk[1024 + 0x60] & 4, 4, "it needs recovery: {output:?}");
    disk
}

fn read_letters(disk: &[u8]) -> String {
    let bytes = open(disk).unwrap().read(Path::new("file"), 1 << 20).unwrap();
    bytes.chunks(4096).map(|block| char::from(block[0])).collect()
}

#[test]
fn what_is_only_in_the_journal_is_read_from_it() {
    let (root, blocks) = file();
    let wide = disk(&root);
    let narrow = disk_with(&root, &["-b", "4096", "-O", "none,has_journal,filetype,extent"]);
    let narrow_blocks: Vec<usize> = (0..10).map(|n| n + first_block(&narrow, "/file")).collect();
    for (disk, blocks, open) in [
        (&wide, &blocks, "jo -c -v 3"),
        (&wide, &blocks, "jo -c -v 2"),
        (&wide, &blocks, "jo"),
        (&narrow, &narrow_blocks, "jo -c -v 3"),
        (&narrow, &narrow_blocks, "jo -c -v 2"),
        (&narrow, &narrow_blocks, "jo"),
    ] {
        let write = |n: usize, letter| ("-b", blocks[n], Some(letter));
        let revoke = |n: usize| ("-r", blocks[n], None);
        let got = letters(
            disk,
            open,
            &[write(0, b'b'), write(1, b'b'), write(2, b'b'), revoke(1), revoke(2), write(2, b'c'), write(3, b'd')],
        );
        assert_eq!(got, "bacdaaaaaa", "{open} {}", disk == &wide);
    }
}

#[test]
fn a_block_that_looks_like_the_journals_own_is_itself() {
    let (root, blocks) = file();
    let content = tempfile::NamedTempFile::new().unwrap();
    let mut block = vec![b'e'; 4096];
    block[..4].copy_from_slice(&[0xc0, 0x3b, 0x39, 0x98]);
    fs::write(content.path(), &block).unwrap();
    let script = format!("jo -c -v 3\njw -b {} {}\njc\n", blocks[4], content.path().display());
    let disk = with_script(&disk(&root), &script);
    let bytes = open(&disk).unwrap().read(Path::new("file"), 1 << 20).unwrap();
    assert!(bytes[4 * 4096..5 * 4096] == block && bytes[..4096] == [b'a'; 4096]);
}

#[test]
fn a_transaction_that_was_not_committed_is_not_there() {
    let (root, blocks) = file();
    let content = tempfile::NamedTempFile::new().unwrap();
    fs::write(content.path(), [b'f'; 4096]).unwrap();
    let script = |more: &str| format!("jo -c -v 3\njw -b {} {}\n{more}jc\n", blocks[5], content.path().display());
    let whole = disk(&root);
    assert_eq!(read_letters(&with_script(&whole, &script(""))), "aaaaafaaaa");
    let second = format!("jw -c -b {} {}\n", blocks[6], content.path().display());
    assert_eq!(read_letters(&with_script(&whole, &script(&second))), "aaaaafaaaa");
}

#[test]
fn whatever_a_journal_holds_is_survived() {
    let (root, blocks) = file();
    let content = tempfile::NamedTempFile::new().unwrap();
    fs::write(content.path(), [b'g'; 4096]).unwrap();
    let mut script = "jo -c -v 3\n".to_owned();
    for block in &blocks {
        script += &format!("jw -b {block} {}\njw -r {block}\n", content.path().display());
    }
    let dirty = with_script(&disk(&root), &(script + "jc\n"));
    let journal = first_block(&dirty, "<8>") * 4096;
    let (table, blocks) = (inode_of(&dirty, "<8>"), 64 * 4096);
    let places: Vec<usize> =
        (table..table + 128).chain((journal..journal + blocks).filter(|at| ![0, b'g'].contains(&dirty[*at]))).collect();
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let (mut worked, mut failed) = (0, 0);
    for _ in 0..150 {
        let mut disk = dirty.clone();
        for _ in 0..1 + random.below(6) {
            disk[places[random.below(places.len())]] = [0, 1, 0xff, random.below(256) as u8][random.below(4)];
        }
        match open(&disk).and_then(|disk| disk.read(Path::new("file"), 1 << 20)) {
            Ok(_) => worked += 1,
            Err(_) => failed += 1,
        }
    }
    eprintln!("{worked} worked, {failed} failed");
    assert!(worked > 0 && failed > 0);
}
