//! What is different between two releases, in words.

use super::helm::Manifests;
use serde_json::Value;
use std::collections::BTreeSet;

/// A line for each object, field or item of a list that is there in one only (`+`, `-`), or another (`~`).
pub fn differences(before: &Manifests, after: &Manifests) -> Vec<String> {
    let [one, other] = [before, after].map(by_name);
    let mut lines = Vec::new();
    compare("", &one, &other, &mut lines);
    lines
}

/// The objects under `KIND/NAME`. What is made by chance is left out.
fn by_name(manifests: &Manifests) -> Value {
    let objects = manifests.0.iter().map(|object| {
        let [kind, name] = [&object["kind"], &object["metadata"]["name"]];
        let mut object = object.clone();
        if kind == "Secret" {
            object["data"].take();
        }
        (format!("{}/{}", kind.as_str().unwrap(), name.as_str().unwrap()), object)
    });
    Value::Object(objects.collect())
}

fn compare(path: &str, before: &Value, after: &Value, lines: &mut Vec<String>) {
    if let (Some(one), Some(other)) = (keyed(before), keyed(after)) {
        let keys: BTreeSet<&String> = one.keys().chain(other.keys()).collect();
        for key in keys {
            let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            match (one.get(key), other.get(key)) {
                (Some(before), Some(after)) => compare(&path, before, after, lines),
                (Some(_), None) => lines.push(format!("- {path}")),
                // Of a whole object its name; the schemas know it.
                (None, Some(_)) if path.contains('/') && !path.contains('.') => {
                    lines.push(format!("+ {path}"));
                }
                (None, Some(added)) => lines.push(format!("+ {path}: {added}")),
                (None, None) => {}
            }
        }
    } else if let (Value::Array(one), Value::Array(other)) = (before, after) {
        let gone = one.iter().filter(|item| !other.contains(item));
        lines.extend(gone.map(|item| format!("- {path}[]: {item}")));
        let added = other.iter().filter(|item| !one.contains(item));
        lines.extend(added.map(|item| format!("+ {path}[]: {item}")));
    } else if path.ends_with("checksum/settings") && before != after {
        lines.push(format!("~ {path}"));
    } else if before != after {
        lines.push(format!("~ {path}: {before} -> {after}"));
    }
}

/// The members of an object, or of a list whose items have names of their own.
fn keyed(value: &Value) -> Option<serde_json::Map<String, Value>> {
    match value {
        Value::Object(members) => Some(members.clone()),
        Value::Array(items) => {
            let names = ["name", "topologyKey", "mountPath"];
            let name_of =
                |item: &Value| names.iter().find_map(|name| item[name].as_str().map(str::to_owned));
            items.iter().map(|item| Some((name_of(item)?, item.clone()))).collect()
        }
        _ => None,
    }
}
