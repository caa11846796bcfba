"""Read a RELION project (or a cryoSPARC .cs file) into tensors, and write a selection back.

python examples/relion_project_to_tensors.py Extract/job012/particles.star selected.star
"""

import sys

import vitreous as vt

particles = vt.Particles.open(sys.argv[1], half_seed=1)  # no image is read yet
images = particles.images(box_size=particles.box_size // 2)  # Fourier-cropped, protein positive
print(particles)
print(f"first batch   {tuple(images[:8].shape)}, pixels of {images.pixel_size_angstrom:g} Å")
print(f"defocus U     {particles.optics.defocus_u_angstrom.mean():.0f} Å on average")
print(f"micrographs   {len(particles.micrograph_names)}")
print(f"half sets     {[int((particles.half_set == half).sum()) for half in (1, 2)]}")
if particles.pose is not None:
    angles_deg = vt.matrix_to_euler(particles.pose.rotation)  # rot, tilt, psi
    print(f"first angles  {angles_deg[0].tolist()}")
    print(f"first shift   {particles.pose.shift_angstrom[0].tolist()} Å")

underfocused = particles.optics.defocus_u_angstrom > 15000
selected = particles.select(underfocused)
vt.write_particles(sys.argv[2], selected)
print(f"{sys.argv[2]}: {len(selected)} particles, all columns kept")
