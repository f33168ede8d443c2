//! What OpenTelemetry's standard variables say of traces. They are not ours alone: somebody may have set
//! them for all programs of a machine. So, as the specification has it, what can not be followed is told,
//! and the cache goes on without.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::str::FromStr;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use percent_encoding::percent_decode_str;
use url::Url;

use crate::telemetry::traces::{Config, Export, Protocol, Queue, Sampler, Tls};

/// For how long an answer is waited for unless a variable says else, in milliseconds (OTLP exporter).
const TIMEOUT: u64 = 10_000;
/// The batch span processor's: `OTEL_BSP_MAX_QUEUE_SIZE`, `…_MAX_EXPORT_BATCH_SIZE`, and, in milliseconds,
/// `…_SCHEDULE_DELAY` and `…_EXPORT_TIMEOUT`.
const QUEUE: (u64, u64, u64, u64) = (2_048, 512, 5_000, 30_000);
/// More spans than fit into memory.
const SPANS_MAX: u64 = 1_000_000;
/// Longer than anybody means, in milliseconds.
const MILLIS_MAX: u64 = 86_400_000;

/// What is to be traced, by the variables of `environment`.
pub(super) fn read(environment: &BTreeMap<String, String>) -> Config {
    let mut variables = Variables { environment, ignored: Vec::new() };
    let export = variables.is_on().then(|| variables.export()).flatten();
    Config { export, ignored: variables.ignored }
}

struct Variables<'a> {
    environment: &'a BTreeMap<String, String>,
    ignored: Vec<String>,
}

impl<'a> Variables<'a> {
    fn is_on(&mut self) -> bool {
        if self.flag("OTEL_SDK_DISABLED") {
            return false;
        }
        for name in ["OTEL_METRICS_EXPORTER", "OTEL_LOGS_EXPORTER"] {
            if self.text(name).is_some_and(|exporter| exporter != "none") {
                self.ignore(name, "metrics are scraped (/metrics), and logs are on standard error");
            }
        }
        for name in LIMITS {
            if self.text(name).is_some() {
                self.ignore(name, "spans have few attributes, and the longest is 512 bytes or so");
            }
        }
        if self.text("OTEL_CONFIG_FILE").is_some() {
            self.ignore("OTEL_CONFIG_FILE", "files of OpenTelemetry are not read");
        }
        let Some(exporters) = self.text("OTEL_TRACES_EXPORTER") else {
            return self.endpoint_variable().is_some();
        };
        let mut is_on = false;
        for exporter in exporters.split(',').map(str::trim) {
            match exporter {
                "otlp" => is_on = true,
                "none" => {}
                _ => self.ignore("OTEL_TRACES_EXPORTER", format!("{exporter:?} is not otlp")),
            }
        }
        is_on
    }

    fn export(&mut self) -> Option<Export> {
        let protocol = self.protocol();
        Some(Export {
            protocol,
            endpoint: self.endpoint(protocol)?,
            timeout: {
                let name = self.of_traces("TIMEOUT").map_or("", |(name, _)| name);
                self.millis(name, TIMEOUT)
            },
            headers: self.headers(),
            compress: self.compress(),
            tls: self.tls(),
            resource: self.resource(),
            sampler: self.sampler(),
            propagates: self.propagates(),
            queue: self.queue(),
        })
    }

    fn protocol(&mut self) -> Protocol {
        match self.of_traces("PROTOCOL") {
            None | Some((_, "http/protobuf")) => Protocol::Http,
            Some((_, "grpc")) => Protocol::Grpc,
            Some((name, other)) => {
                self.ignore(name, format!("{other:?} is neither http/protobuf nor grpc"));
                Protocol::Http
            }
        }
    }

    fn endpoint_variable(&self) -> Option<(&'static str, &'a str)> {
        self.of_traces("ENDPOINT")
    }

    /// Where the receiver is; `None` if it can not be anywhere.
    fn endpoint(&mut self, protocol: Protocol) -> Option<String> {
        let Some((name, text)) = self.endpoint_variable() else {
            return Some(match protocol {
                Protocol::Http => "http://localhost:4318/v1/traces".to_owned(),
                Protocol::Grpc => "http://localhost:4317".to_owned(),
            });
        };
        let scheme = if self.insecure() { "http" } else { "https" };
        // Without a scheme, that is how gRPC's own names are.
        let is_bare = protocol == Protocol::Grpc && !text.contains("://");
        let full = if is_bare { format!("{scheme}://{text}") } else { text.to_owned() };
        let url = Url::parse(&full)
            .ok()
            .filter(|url| matches!(url.scheme(), "http" | "https") && url.host().is_some());
        let Some(mut url) = url else {
            self.ignore(name, "it is no http or https URL, so there are no traces");
            return None;
        };
        if !url.username().is_empty() || url.password().is_some() {
            let why = "credentials belong into OTEL_EXPORTER_OTLP_HEADERS, so there are no traces";
            self.ignore(name, why);
            return None;
        }
        if protocol == Protocol::Grpc {
            url.set_path("");
        } else if name == "OTEL_EXPORTER_OTLP_ENDPOINT" {
            let path = format!("{}/v1/traces", url.path().trim_end_matches('/'));
            url.set_path(&path);
        }
        Some(url.to_string())
    }

    /// For a gRPC endpoint without a scheme.
    fn insecure(&mut self) -> bool {
        let name = self.of_traces("INSECURE").map_or("", |(name, _)| name);
        self.flag(name)
    }

    fn compress(&mut self) -> bool {
        for (name, text) in self.each_of_traces("COMPRESSION") {
            match &*text.to_ascii_lowercase() {
                "gzip" => return true,
                "none" => return false,
                _ => self.ignore(name, format!("{text:?} is neither gzip nor none")),
            }
        }
        false
    }

    fn tls(&mut self) -> Tls {
        let path = |what| self.of_traces(what).map(|(_, path)| path.into());
        let authorities = path("CERTIFICATE");
        let identity = match (path("CLIENT_CERTIFICATE"), path("CLIENT_KEY")) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            _ => {
                let why = "certificate and key (OTEL_EXPORTER_OTLP_CLIENT_KEY) go together";
                self.ignore("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", why);
                None
            }
        };
        Tls { authorities, identity }
    }

    fn headers(&mut self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        let Some((name, text)) = self.of_traces("HEADERS") else { return headers };
        for text in text.split(',').filter(|text| !text.trim().is_empty()) {
            // Their values are nobody's to read.
            match header(text) {
                Some((key, value)) => drop(headers.insert(key, value)),
                None => self.ignore(name, "one of them is no header (NAME=VALUE, percent-encoded)"),
            }
        }
        headers
    }

    fn resource(&mut self) -> Vec<(String, String)> {
        let mut told = BTreeMap::from([
            ("service.name".to_owned(), "aptmesh".to_owned()),
            ("service.version".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
            ("service.instance.id".to_owned(), super::values::pseudonym()),
        ]);
        let name = "OTEL_RESOURCE_ATTRIBUTES";
        for attribute in self.text(name).unwrap_or_default().split(',') {
            match pair(attribute) {
                Some((key, value)) => drop(told.insert(key, value)),
                None if attribute.trim().is_empty() => {}
                None => self.ignore(name, format!("{attribute:?} is not KEY=VALUE")),
            }
        }
        if let Some(service) = self.text("OTEL_SERVICE_NAME") {
            told.insert("service.name".to_owned(), service.to_owned());
        }
        told.into_iter().collect()
    }

    fn sampler(&mut self) -> Sampler {
        let name = "OTEL_TRACES_SAMPLER";
        let by_parent = |root| Sampler::ParentBased(Box::new(root));
        match self.text(name) {
            None | Some("parentbased_always_on") => by_parent(Sampler::AlwaysOn),
            Some("always_on") => Sampler::AlwaysOn,
            Some("always_off") => Sampler::AlwaysOff,
            Some("parentbased_always_off") => by_parent(Sampler::AlwaysOff),
            Some("traceidratio") => Sampler::TraceIdRatioBased(self.ratio()),
            Some("parentbased_traceidratio") => by_parent(Sampler::TraceIdRatioBased(self.ratio())),
            Some(other) => {
                self.ignore(name, format!("there is no sampler {other:?} here"));
                by_parent(Sampler::AlwaysOn)
            }
        }
    }

    fn ratio(&mut self) -> f64 {
        let name = "OTEL_TRACES_SAMPLER_ARG";
        let ratio = self.text(name).map(str::parse::<f64>);
        match ratio {
            None => 1.0,
            Some(Ok(ratio)) if (0.0..=1.0).contains(&ratio) => ratio,
            Some(_) => {
                self.ignore(name, "it is no number from 0 to 1, so all requests are traced");
                1.0
            }
        }
    }

    /// Whether traces are told of and heard of. Baggage is not handed on: it is for those who put it there,
    /// and sites do not trust each other.
    fn propagates(&mut self) -> bool {
        let name = "OTEL_PROPAGATORS";
        let mut is_told = false;
        for propagator in self.text(name).unwrap_or("tracecontext").split(',').map(str::trim) {
            match propagator {
                "tracecontext" => is_told = true,
                "none" | "baggage" => {}
                other => self.ignore(name, format!("{other:?} is not tracecontext")),
            }
        }
        is_told
    }

    fn queue(&mut self) -> Queue {
        let spans_max = self.number("OTEL_BSP_MAX_QUEUE_SIZE", QUEUE.0, SPANS_MAX);
        let batch_max =
            self.number("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", QUEUE.1.min(spans_max), SPANS_MAX);
        if batch_max > spans_max {
            let why = "no more can be sent at once than may wait (OTEL_BSP_MAX_QUEUE_SIZE)";
            self.ignore("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", why);
        }
        let spans = |number| usize::try_from(number).unwrap_or(usize::MAX);
        Queue {
            spans_max: spans(spans_max),
            batch_max: spans(batch_max.min(spans_max)),
            delay: self.millis("OTEL_BSP_SCHEDULE_DELAY", QUEUE.2),
            timeout: self.millis("OTEL_BSP_EXPORT_TIMEOUT", QUEUE.3),
        }
    }

    fn millis(&mut self, name: &'static str, default: u64) -> Duration {
        Duration::from_millis(self.number(name, default, MILLIS_MAX))
    }

    fn number(&mut self, name: &'static str, default: u64, max: u64) -> u64 {
        let Some(text) = self.text(name) else { return default };
        match text.parse() {
            Ok(number) if (1..=max).contains(&number) => number,
            _ => {
                self.ignore(name, format!("{text:?} is no number from 1 to {max}"));
                default
            }
        }
    }

    fn flag(&mut self, name: &'static str) -> bool {
        match self.text(name) {
            Some(text) if text.eq_ignore_ascii_case("true") => true,
            Some(text) if !text.eq_ignore_ascii_case("false") => {
                self.ignore(name, format!("{text:?} is neither true nor false"));
                false
            }
            _ => false,
        }
    }

    /// A variable of the exporter: that for traces, or that for all signals.
    fn of_traces(&self, what: &str) -> Option<(&'static str, &'a str)> {
        self.each_of_traces(what).into_iter().next()
    }

    /// Both, if they are set.
    fn each_of_traces(&self, what: &str) -> Vec<(&'static str, &'a str)> {
        let is_meant = |all: &str| all.strip_prefix("OTEL_EXPORTER_OTLP_") == Some(what);
        let names = EXPORTER.iter().filter(|names| is_meant(names.0));
        let names = names.flat_map(|names| [names.1, names.0]);
        names.filter_map(|name| Some((name, self.text(name)?))).collect()
    }

    /// What is empty is not set.
    fn text(&self, name: &str) -> Option<&'a str> {
        self.environment.get(name).map(|text| text.trim()).filter(|text| !text.is_empty())
    }

    fn ignore(&mut self, name: &str, why: impl Display) {
        self.ignored.push(format!("{name} is not followed: {why}"));
    }
}

/// The exporter's variables: for all signals, and for traces alone.
const EXPORTER: [(&str, &str); 9] = [
    ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"),
    ("OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"),
    ("OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS"),
    ("OTEL_EXPORTER_OTLP_TIMEOUT", "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT"),
    ("OTEL_EXPORTER_OTLP_COMPRESSION", "OTEL_EXPORTER_OTLP_TRACES_COMPRESSION"),
    ("OTEL_EXPORTER_OTLP_INSECURE", "OTEL_EXPORTER_OTLP_TRACES_INSECURE"),
    ("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", "OTEL_EXPORTER_OTLP_TRACES_CLIENT_CERTIFICATE"),
    ("OTEL_EXPORTER_OTLP_CLIENT_KEY", "OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY"),
    ("OTEL_EXPORTER_OTLP_CERTIFICATE", "OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE"),
];

/// Bounds of spans that are not ours to choose.
const LIMITS: [&str; 5] = [
    "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT",
    "OTEL_ATTRIBUTE_COUNT_LIMIT",
    "OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT",
    "OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT",
    "OTEL_LINK_ATTRIBUTE_COUNT_LIMIT",
];

/// `NAME=VALUE`, percent-decoded.
fn header(text: &str) -> Option<(HeaderName, HeaderValue)> {
    let (key, value) = pair(text)?;
    let mut value = HeaderValue::from_str(&value).ok()?;
    value.set_sensitive(true);
    Some((HeaderName::from_str(&key).ok()?, value))
}

/// `KEY=VALUE`, percent-decoded.
fn pair(text: &str) -> Option<(String, String)> {
    let (key, value) = text.split_once('=')?;
    let decoded =
        |text: &str| Some(percent_decode_str(text.trim()).decode_utf8().ok()?.into_owned());
    let key = decoded(key).filter(|key| !key.is_empty())?;
    Some((key, decoded(value)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(variables: &[(&str, &str)]) -> Config {
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        read(&variables.iter().map(own).collect())
    }

    const ENDPOINT: (&str, &str) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318");

    #[test]
    fn traces_are_on_when_somebody_says_so() {
        let on = |variables: &[(&str, &str)]| config(variables).export.is_some();
        assert!(!on(&[]));
        assert!(on(&[ENDPOINT]));
        assert!(on(&[("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://collector:4318/x")]));
        assert!(on(&[("OTEL_TRACES_EXPORTER", "otlp")]));
        assert!(!on(&[ENDPOINT, ("OTEL_TRACES_EXPORTER", "none")]));
        assert!(!on(&[ENDPOINT, ("OTEL_SDK_DISABLED", "TRUE")]));
        assert!(!on(&[("OTEL_EXPORTER_OTLP_ENDPOINT", " ")]));
        assert!(!on(&[("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "http://collector:4318")]));
    }

    #[test]
    fn the_endpoint_is_where_the_specification_says() {
        let all = "OTEL_EXPORTER_OTLP_ENDPOINT";
        let own = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";
        let grpc = ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc");
        for (variables, endpoint) in [
            (vec![(all, "http://c:4318")], "http://c:4318/v1/traces"),
            (vec![(all, "https://c/otlp/")], "https://c/otlp/v1/traces"),
            (vec![(all, "http://c:4318"), (own, "http://d/spans")], "http://d/spans"),
            (vec![("OTEL_TRACES_EXPORTER", "otlp")], "http://localhost:4318/v1/traces"),
            (vec![("OTEL_TRACES_EXPORTER", "otlp"), grpc], "http://localhost:4317"),
            (vec![(all, "http://c:4317/path"), grpc], "http://c:4317/"),
            (vec![(all, "c:4317"), grpc], "https://c:4317/"),
            (
                vec![(all, "c:4317"), grpc, ("OTEL_EXPORTER_OTLP_INSECURE", "true")],
                "http://c:4317/",
            ),
        ] {
            let config = config(&variables);
            assert_eq!(config.ignored, Vec::<String>::new());
            assert_eq!(config.export.unwrap().endpoint, endpoint, "{variables:?}");
        }
        for bad in ["collector", "ftp://c", "http://me:secret@c:4318"] {
            let config = config(&[(all, bad)]);
            assert!(config.export.is_none(), "{bad}");
            assert!(config.ignored[0].contains(all), "{:?}", config.ignored);
            assert!(!config.ignored[0].contains("secret"), "{:?}", config.ignored);
        }
    }

    #[test]
    fn what_is_not_followed_is_named() {
        for (name, value) in [
            ("OTEL_SDK_DISABLED", "perhaps"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"),
            ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "smoke"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "soon"),
            ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "0"),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "zstd"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "no header"),
            ("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", "/some/file"),
            ("OTEL_RESOURCE_ATTRIBUTES", "=x"),
            ("OTEL_TRACES_SAMPLER", "xray"),
            ("OTEL_TRACES_EXPORTER", "otlp,zipkin"),
            ("OTEL_METRICS_EXPORTER", "otlp"),
            ("OTEL_LOGS_EXPORTER", "otlp"),
            ("OTEL_CONFIG_FILE", "/etc/otel.yaml"),
            ("OTEL_PROPAGATORS", "b3"),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "-1"),
            ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "4096"),
            ("OTEL_BSP_SCHEDULE_DELAY", "x"),
            ("OTEL_BSP_EXPORT_TIMEOUT", "x"),
            ("OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT", "9"),
        ] {
            let config = config(&[ENDPOINT, (name, value)]);
            let told: Vec<&String> =
                config.ignored.iter().filter(|told| told.starts_with(name)).collect();
            assert_eq!(told.len(), 1, "{name}: {:?}", config.ignored);
            assert!(config.export.is_some(), "{name}");
        }
        let ratio = ("OTEL_TRACES_SAMPLER", "traceidratio");
        assert_eq!(config(&[ENDPOINT, ratio, ("OTEL_TRACES_SAMPLER_ARG", "2")]).ignored.len(), 1);
        assert!(config(&[ENDPOINT, ratio, ("OTEL_TRACES_SAMPLER_ARG", "0")]).ignored.is_empty());
    }

    #[test]
    fn what_is_for_traces_alone_counts_more() {
        let [all, own] =
            ["OTEL_EXPORTER_OTLP_COMPRESSION", "OTEL_EXPORTER_OTLP_TRACES_COMPRESSION"];
        for (variables, compress) in [
            (vec![(all, "GZIP")], true),
            (vec![(all, "gzip"), (own, "none")], false),
            (vec![(all, "gzip"), (own, " ")], true),
            // What is no value is as if it were not there.
            (vec![(all, "gzip"), (own, "zstd")], true),
        ] {
            let variables = [vec![ENDPOINT], variables].concat();
            assert_eq!(config(&variables).export.unwrap().compress, compress, "{variables:?}");
        }
        let [all, own] = ["OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS"];
        for (variables, key) in [
            (vec![(all, "key=secret%201")], "secret 1"),
            (vec![(all, "key=secret%201"), (own, "key=secret%202")], "secret 2"),
            (vec![(all, "key=secret%201"), (own, "")], "secret 1"),
        ] {
            let export = config(&[vec![ENDPOINT], variables].concat()).export.unwrap();
            assert_eq!(export.headers["key"], key);
            assert!(!format!("{export:?}").contains(key), "{export:?}");
        }
    }

    #[test]
    fn the_resource_is_told_of() {
        let variables = [
            ENDPOINT,
            ("OTEL_SERVICE_NAME", "cache"),
            ("OTEL_RESOURCE_ATTRIBUTES", "service.name=x,site=north%20pole, service.instance.id=i"),
        ];
        let told = config(&variables).export.unwrap().resource;
        let of = |key: &str| &told.iter().find(|(name, _)| name == key).unwrap().1;
        assert_eq!(of("service.name"), "cache");
        assert_eq!(of("site"), "north pole");
        assert_eq!(of("service.instance.id"), "i");
        assert_eq!(of("service.version"), env!("CARGO_PKG_VERSION"));
    }
}
