//! Configuration in layers: defaults < file < environment < flags.
//!
//! A setting that nobody knows is refused with its name and where it comes from: a misspelt limit
//! must not be a silent default. That needs `#[serde(deny_unknown_fields)]` on every struct of the
//! configuration.

use std::path::{Path, PathBuf};

use figment::Figment;
use figment::providers::{Env, Format, Serialized, Toml};
use figment::value::{Dict, Value};
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

/// Why there is no usable configuration.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration file {path}")]
    File {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A setting is missing, unknown, or of the wrong kind.
    #[error("{0}")]
    Setting(String),
}

/// A setting in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Its path, e.g. `limits.max_in_flight`.
    pub key: String,
    /// Its value; `***` for a secret.
    pub value: String,
    /// `default`, a file's path, an environment variable's prefix, or `flag`.
    pub origin: String,
}

/// A configuration, and where each of its settings comes from.
#[derive(Clone, Debug)]
pub struct Loaded<T> {
    /// The configuration.
    pub config: T,
    /// Every setting, by key.
    pub settings: Vec<Setting>,
}

impl<T> Loaded<T> {
    /// Keys of the settings that nobody set, in the order of [`Loaded::settings`].
    pub fn left_out(&self) -> Vec<&str> {
        let settings = self.settings.iter();
        let left_out = settings.filter(|setting| setting.origin == DEFAULTS);
        left_out.map(|setting| setting.key.as_str()).collect()
    }
}

const DEFAULTS: &str = "default";
const FLAGS: &str = "flag";

/// Loads a configuration. `env_prefix` is e.g. `CONCORD_COORDINATOR_`; a double underscore stands
/// for the dot in a setting's path. `flags` holds what the command line set.
pub fn load<T>(file: Option<&Path>, env_prefix: &str, flags: Dict) -> Result<Loaded<T>, ConfigError>
where
    T: Serialize + DeserializeOwned + Default,
{
    let mut figment = Figment::new().merge(Named(DEFAULTS, Serialized::defaults(T::default())));
    if let Some(path) = file {
        // Read here, for a missing file must be an error and say so.
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::File {
            path: path.to_owned(),
            source,
        })?;
        drop(text);
        figment = figment.merge(Toml::file_exact(path));
    }
    let env = Env::prefixed(env_prefix).split("__");
    figment = figment
        .merge(env)
        .merge(Named(FLAGS, Serialized::defaults(flags)));
    let config = figment
        .extract()
        .map_err(|error| ConfigError::Setting(describe(&error)))?;
    let mut settings = Vec::new();
    let data: Dict = figment
        .extract()
        .map_err(|error| ConfigError::Setting(describe(&error)))?;
    flatten(&figment, "", &data, &mut settings);
    settings.sort_by(|a, b| a.key.cmp(&b.key));
    Ok(Loaded { config, settings })
}

/// All errors, one a line: what is wrong with which setting, and where it comes from.
fn describe(error: &figment::Error) -> String {
    let lines: Vec<String> = error
        .clone()
        .into_iter()
        .map(|error| {
            let origin = error.metadata.as_ref().map(origin_of);
            let from = origin
                .map(|origin| format!(" (from {origin})"))
                .unwrap_or_default();
            let path = error.path.join(".");
            match (path.is_empty(), &error.kind) {
                (true, kind) => format!("configuration: {kind}{from}"),
                (false, kind) => format!("setting {path}: {kind}{from}"),
            }
        })
        .collect();
    lines.join("\n")
}

fn origin_of(metadata: &figment::Metadata) -> String {
    match &metadata.source {
        Some(figment::Source::File(path)) => path.display().to_string(),
        _ => metadata.name.to_string(),
    }
}

fn flatten(figment: &Figment, prefix: &str, dict: &Dict, settings: &mut Vec<Setting>) {
    for (name, value) in dict {
        let key = if prefix.is_empty() {
            name.clone()
        } else {
            format!("{prefix}.{name}")
        };
        if let Value::Dict(_, inner) = value {
            flatten(figment, &key, inner, settings);
            continue;
        }
        let origin = figment
            .find_metadata(&key)
            .map_or_else(|| DEFAULTS.to_owned(), origin_of);
        settings.push(Setting {
            value: shown(name, value),
            key,
            origin,
        });
    }
}

/// A value as text. What holds a secret itself is masked; the name of its file is not a secret.
fn shown(name: &str, value: &Value) -> String {
    let secret = ["password", "secret", "token"]
        .iter()
        .any(|word| name.contains(word));
    if secret && !name.ends_with("_file") {
        return "***".to_owned();
    }
    match value {
        Value::String(_, text) => text.clone(),
        other => serde_json::to_string(other).unwrap_or_default(),
    }
}

/// A provider under a name that people understand.
struct Named<P>(&'static str, P);

impl<P: figment::Provider> figment::Provider for Named<P> {
    fn metadata(&self) -> figment::Metadata {
        figment::Metadata::named(self.0)
    }

    fn data(&self) -> Result<figment::value::Map<figment::Profile, Dict>, figment::Error> {
        self.1.data()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, Default, Serialize, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields)]
    struct Inner {
        limit: u32,
        password: String,
        password_file: String,
    }

    #[derive(Debug, Default, Serialize, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields)]
    struct Outer {
        name: String,
        inner: Inner,
    }

    fn file(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        file
    }

    fn flags(pairs: &[(&str, &str)]) -> Dict {
        pairs
            .iter()
            .map(|(key, value)| ((*key).to_owned(), Value::from(*value)))
            .collect()
    }

    #[test]
    fn later_layers_win_and_origins_are_known() {
        let file = file("name = \"file\"\n[inner]\nlimit = 7\npassword = \"x\"\n");
        let loaded: Loaded<Outer> = load(
            Some(file.path()),
            "CONCORD_TEST_CONFIG_",
            flags(&[("name", "flag")]),
        )
        .unwrap();
        assert_eq!(loaded.config.name, "flag");
        assert_eq!(loaded.config.inner.limit, 7);
        let by_key = |key: &str| loaded.settings.iter().find(|s| s.key == key).unwrap();
        assert_eq!(by_key("name").origin, FLAGS);
        assert_eq!(
            by_key("inner.limit").origin,
            file.path().display().to_string()
        );
        assert_eq!(by_key("inner.password").value, "***");
        assert_eq!(by_key("inner.password_file").origin, DEFAULTS);
    }

    #[test]
    fn a_misspelt_setting_is_refused_by_name_and_origin() {
        let file = file("[inner]\nlimmit = 7\n");
        let error =
            load::<Outer>(Some(file.path()), "CONCORD_TEST_CONFIG_", Dict::new()).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("limmit"), "{text}");
        assert!(text.contains(&file.path().display().to_string()), "{text}");
    }

    #[test]
    fn a_missing_file_is_an_error() {
        let missing = Path::new("/nonexistent/concord.toml");
        let error = load::<Outer>(Some(missing), "CONCORD_TEST_CONFIG_", Dict::new()).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/concord.toml"));
    }
}
