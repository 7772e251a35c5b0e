//! The archive of a guest's root.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufReader, Read, Write};
use std::time::Instant;

use duet_agent::protocol::message::ExecStatus;
use duet_images::{Compress, ImageFiles, Metadata, Observer, UnpackOptions, pack_archive, unpack};

use crate::machine::{Machine, Parts, SOON, pipe, shell};

#[test]
fn a_guests_root_becomes_an_image() {
    let Some(parts) = Parts::find() else { return };
    for words in ["duet.root=serial:the-root rw duet.serve", "duet.root=serial:the-root rw init=/bin/sh"] {
        let mut machine = Machine::start(&parts, words);
        let (client, _) = machine.connect();
        let (status, told, _) = shell(&client, "cat /etc/passwd; echo kept > /etc/note; echo lost > /run/note");
        assert_eq!(status, ExecStatus::Code(0));

        let begun = Instant::now();
        let ((archive, theirs), (errors, their_errors)) = (pipe(), pipe());
        let mut exec = client.archive(theirs, their_errors, SOON).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        let (metadata, templates) =
            (Metadata::from_yaml(b"architecture: x86_64\ncreation_date: 1\n").unwrap(), BTreeMap::new());
        let archive = BufReader::with_capacity(1 << 16, File::from(archive));
        let mut out = File::create(&image).unwrap();
        let packed = pack_archive(&metadata, &templates, archive, &mut out, Compress::default(), &mut Observer::none());
        out.flush().unwrap();
        let mut said = String::new();
        File::from(errors).read_to_string(&mut said).unwrap();
        assert_eq!((exec.wait(SOON).unwrap(), &*said), (Some(ExecStatus::Code(0)), ""));
        let packed = packed.unwrap();
        eprintln!("{} bytes in {} entries in {:?}", packed.content, packed.entries, begun.elapsed());

        let copy = dir.path().join("copy");
        let files = ImageFiles { meta: image, rootfs: None };
        unpack(&files, &copy, &UnpackOptions::default(), &mut Observer::none()).unwrap();
        let root = copy.join("rootfs");
        assert!(told.starts_with(&fs::read_to_string(root.join("etc/passwd")).unwrap()));
        assert_eq!(fs::read_to_string(root.join("etc/note")).unwrap(), "kept\n");
        for name in ["dev", "proc", "run", "sys"] {
            assert_eq!(fs::read_dir(root.join(name)).unwrap().count(), 0, "{name}");
        }
    }
}
