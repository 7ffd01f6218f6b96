//! Tells the crate which Python it is built for, and the modules where its libpython lives.

fn main() {
    let python = pyo3_build_config::get();
    pyo3_build_config::use_pyo3_cfgs();
    let version = python.version();
    println!("cargo::rustc-env=HIGHBALL_PYTHON_VERSION={version}");
    println!("cargo::metadata=python_version={version}");
    if let Some(executable) = python.executable() {
        println!("cargo::rustc-env=HIGHBALL_PYTHON={executable}");
        println!("cargo::metadata=python={executable}");
    }
    // Without an rpath the loader silently takes another libpython of the same name.
    if let Some(directory) = python.lib_dir() {
        println!("cargo::metadata=python_libdir={directory}");
        println!("cargo::rustc-link-arg=-Wl,-rpath,{directory}");
    }
}
