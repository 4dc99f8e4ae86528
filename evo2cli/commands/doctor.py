"""`evo2 doctor`."""

from evo2cli import console
from evo2cli.doctor.options import DoctorOptions
from evo2cli.options import takes


@takes(DoctorOptions)
def doctor(options: DoctorOptions) -> None:
    """Test whether this machine computes correctly, and which published models it can run.

    Exits with 4 if a self-test fails.
    """
    from evo2cli.doctor.page import doctor_page
    from evo2cli.doctor.run import examine, require_health

    result = examine(options)
    if options.json:
        console.write_json(result)
    else:
        console.write_page(doctor_page(result))
    require_health(result)
