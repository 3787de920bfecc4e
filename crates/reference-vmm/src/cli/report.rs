use std::fs;

use super::args::ReportArgs;
use crate::machine::Stopped;
use crate::report::Report;

/// Writes the reports that were asked for.
pub(super) fn write(
    args: &ReportArgs,
    stopped: &Stopped,
) -> Result<(), Box<dyn std::error::Error>> {
    if args.files.is_empty() {
        return Ok(());
    }
    let report = Report::new(stopped);
    for path in &args.files {
        let text = match path.extension().and_then(|extension| extension.to_str()) {
            Some("json") => serde_json::to_string_pretty(&report)? + "\n",
            Some("svg") => report.svg(),
            _ => report.to_string(),
        };
        fs::write(path, text)
            .map_err(|error| format!("cannot write the report {}: {error}", path.display()))?;
    }
    Ok(())
}
