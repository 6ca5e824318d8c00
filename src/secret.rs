//! Reads a secret from a file that nobody else may read.
//!
//! Must not know what the secret is for. Invariant: neither the secret nor a part of it is in what is said about the file.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// The longest secret, in bytes.
const LENGTH_MAX: u64 = 16 << 10;
/// The rights of the file's group and of everybody else.
const OTHERS: u32 = 0o077;

/// What the file holds, without the line's end.
///
/// # Errors
/// What is wrong with the file, as the end of a sentence.
pub(crate) fn from_file(path: &Path) -> Result<String, String> {
    let unreadable = |error: io::Error| format!("cannot be read: {error}");
    // The rights of what was opened, not of what may stand there a moment later.
    let file = File::open(path).map_err(unreadable)?;
    let about = file.metadata().map_err(unreadable)?;
    if !about.is_file() {
        return Err("is no file".to_owned());
    }
    if about.mode() & OTHERS != 0 {
        let mode = about.mode() & 0o777;
        return Err(format!("others may read or change (its mode is {mode:04o}): `chmod 600` it"));
    }
    let mut text = String::new();
    file.take(LENGTH_MAX + 1).read_to_string(&mut text).map_err(unreadable)?;
    let secret = text.trim_end_matches(['\r', '\n']);
    if text.len() as u64 > LENGTH_MAX {
        Err(format!("holds more than {LENGTH_MAX} bytes"))
    } else if secret.is_empty() {
        Err("is empty".to_owned())
    } else if secret.chars().any(char::is_control) {
        Err("holds more than one line, or a control character".to_owned())
    } else {
        Ok(secret.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_secret_is_read_from_a_file_that_nobody_else_reads() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        let check = |content: &[u8], mode: u32, expected: Result<&str, &str>| {
            std::fs::write(&path, content).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            let found = from_file(&path);
            assert_eq!(found.as_deref().map_err(String::as_str), expected, "{content:?} {mode:o}");
        };
        check(b"sk-1\n", 0o600, Ok("sk-1"));
        check(b"sk-1\r\n", 0o400, Ok("sk-1"));
        for mode in [0o644, 0o640, 0o604, 0o620, 0o666] {
            let why = format!("others may read or change (its mode is {mode:04o}): `chmod 600` it");
            check(b"sk-1", mode, Err(&why));
        }
        check(b"\n", 0o600, Err("is empty"));
        check(b"sk-1\nsk-2\n", 0o600, Err("holds more than one line, or a control character"));
        check(&[b'k'; 20_000], 0o600, Err("holds more than 16384 bytes"));
        check(b"\xff", 0o600, Err("cannot be read: stream did not contain valid UTF-8"));
        assert_eq!(from_file(folder.path()).unwrap_err(), "is no file");
        let missing = from_file(&folder.path().join("none")).unwrap_err();
        assert!(missing.starts_with("cannot be read: No such file"), "{missing}");
    }
}
