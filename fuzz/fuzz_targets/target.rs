//! Request targets: whatever is accepted has one name, and that name is its own name.
#![no_main]

use aptmesh::archive::target::{Authority, Target};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    for target in [Target::from_prefix(text), Target::from_absolute(text)] {
        let Ok(target) = target else { continue };
        let again = Target::from_absolute(&target.key).expect("a key is a target");
        assert_eq!(again.key, target.key);
        assert_eq!(again.path, target.path);
        assert_eq!(again.authority, target.authority);
        let asked = Target::from_absolute(&target.url).expect("an URL to ask for is a target");
        assert_eq!(asked.key, target.key, "the mirror is asked for what was meant");
        assert_eq!(asked.url, target.url);
        assert!(!target.path.split('/').any(|segment| segment == ".."));
        assert!(!target.url.bytes().any(|byte| byte < 0x20 || byte == 0x7f));
    }
    if let Ok(authority) = Authority::parse(text, 80) {
        let written = format!("{}:{}", authority.host, authority.port);
        assert_eq!(Authority::parse(&written, 1), Ok(authority));
    }
});
